/*
 * A target for tests of argument reading. `forms NAME COUNT ...` fires each named probe COUNT times; `forms
 * -` reads such pairs from standard input, one a line, and stays alive in between. Each pair, and each line
 * "semaphores 0", is answered with one line of JSON on standard output:
 *
 *   form, probe, pid, fired   what was fired, and how often
 *   damaged                   shots that met damaged memory or could not be prepared
 *   semaphore                 its value now, null if the probe has none
 *   values                    the arguments, repeating from the start of the list; "shot" is the number of
 * the shot in this request, from 0; null is a string that cannot be read
 */
#include "forms.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct form *find_in(const struct form *forms, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(forms[i].name, name) == 0)
			return &forms[i];
	return NULL;
}

static const struct form *find(const char *name)
{
	const struct form *form = find_in(guarded_forms, guarded_forms_count, name);
	return form ? form : find_in(plain_forms, plain_forms_count, name);
}

static void fire(const struct form *form, uint64_t count)
{
	uint64_t damaged = 0;
	for (uint64_t shot = 0; shot < count; shot++)
		damaged += !form->fire(shot);
	printf("{\"form\": \"%s\", \"probe\": \"%s\", \"pid\": %d, \"fired\": %" PRIu64 ", \"damaged\": %" PRIu64,
	       form->name, form->probe, getpid(), count, damaged);
	if (form->semaphore)
		printf(", \"semaphore\": %u", *form->semaphore);
	else
		printf(", \"semaphore\": null");
	printf(", \"values\": %s}\n", form->values);
	fflush(stdout);
}

static void print_semaphores(void)
{
	printf("{\"pid\": %d, \"semaphores\": {", getpid());
	for (size_t i = 0; i < guarded_forms_count; i++)
		printf("%s\"%s\": %u", i ? ", " : "", guarded_forms[i].probe, *guarded_forms[i].semaphore);
	printf("}}\n");
	fflush(stdout);
}

static bool handle(const char *name, const char *count_text)
{
	char *end;
	unsigned long long count = strtoull(count_text, &end, 10);
	const struct form *form = find(name);
	if (end == count_text || *end) {
		fprintf(stderr, "forms: \"%s\" is not a count\n", count_text);
		return false;
	}
	if (strcmp(name, "semaphores") == 0) {
		print_semaphores();
		return true;
	}
	if (!form) {
		fprintf(stderr, "forms: no form \"%s\"; `forms --list` names them\n", name);
		return false;
	}
	fire(form, count);
	return true;
}

static bool serve(void)
{
	char line[128], name[64], count[32];
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%63s %31s", name, count) != 2) {
			fprintf(stderr, "forms: expected \"NAME COUNT\", got: %s", line);
			return false;
		}
		if (!handle(name, count))
			return false;
	}
	return true;
}

static void list(void)
{
	for (size_t i = 0; i < guarded_forms_count; i++)
		puts(guarded_forms[i].name);
	for (size_t i = 0; i < plain_forms_count; i++)
		puts(plain_forms[i].name);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		list();
		return 0;
	}
	if (argc == 2 && strcmp(argv[1], "-") == 0)
		return serve() ? 0 : 2;
	if (argc < 3 || argc % 2 == 0) {
		fprintf(stderr, "usage: forms NAME COUNT [NAME COUNT ...] | forms - | forms --list\n");
		return 2;
	}
	for (int i = 1; i < argc; i += 2)
		if (!handle(argv[i], argv[i + 1]))
			return 2;
	return 0;
}
