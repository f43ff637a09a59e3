/* Strings on pages that are mapped but not yet present: a read that may not fault cannot read them. */
#define _GNU_SOURCE
#include "forms.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SPAN 2 /* pages */

static char *mapping;
static size_t page;

static int text_file(void)
{
	int file = memfd_create("forms-cold", MFD_CLOEXEC);
	if (file < 0)
		return -1;
	page = (size_t)sysconf(_SC_PAGESIZE);
	bool written = ftruncate(file, (off_t)(SPAN * page)) == 0 &&
		       pwrite(file, COLD_TEXT, sizeof(COLD_TEXT), 64) == (ssize_t)sizeof(COLD_TEXT) &&
		       pwrite(file, CROSSING_TEXT, sizeof(CROSSING_TEXT), (off_t)(page - 20)) ==
			       (ssize_t)sizeof(CROSSING_TEXT);
	if (!written) {
		close(file);
		return -1;
	}
	return file;
}

/* A fresh private mapping has no page in the page table until it is touched. */
static bool map_fresh(void)
{
	static int file = -1;
	if (file < 0)
		file = text_file();
	if (file < 0)
		return false;
	mapping = mmap(NULL, SPAN * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (mapping == MAP_FAILED)
		mapping = NULL;
	return mapping != NULL;
}

const char *cold_string(void)
{
	return map_fresh() ? mapping + 64 : NULL;
}

const char *cold_crossing(void)
{
	if (!map_fresh())
		return NULL;
	mapping[0] = 1; /* written, not read: a read would bring in the neighbouring pages too */
	return mapping + page - 20;
}

void cold_drop(void)
{
	if (mapping)
		munmap(mapping, SPAN * page);
	mapping = NULL;
}
