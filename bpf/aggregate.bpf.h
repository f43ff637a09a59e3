/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Metrics computed in the kernel: conditions, label sets, slots. */
#ifndef AGGREGATE_BPF_H
#define AGGREGATE_BPF_H

#include "numbers.bpf.h"
#include "values.bpf.h"

/* Returns which of n patterns is the first to match the words, or NO_MATCH. */
static __always_inline __u32 match(__u32 first, __u32 n, const __u64 *words, bool text)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_PATTERNS; i++) {
		__u32 at = first + i;
		struct pattern *pattern;
		__u64 differs;

		if (i >= n)
			break;
		pattern = bpf_map_lookup_elem(&patterns, &at);
		if (!pattern)
			break;
		differs = (words[0] ^ pattern->word[0]) & pattern->mask[0];
		if (text) {
			differs |= (words[1] ^ pattern->word[1]) & pattern->mask[1];
			differs |= (words[2] ^ pattern->word[2]) & pattern->mask[2];
			differs |= (words[3] ^ pattern->word[3]) & pattern->mask[3];
		}
		if (!differs)
			return i;
	}
	return NO_MATCH;
}

enum verdict { FITS, FITS_NOT, UNREADABLE };

/* `large` marks an unsigned value above all signed ones. */
static __always_inline bool compare(__u64 value, bool large, const struct condition *cond)
{
	if (large && cond->bias)
		return cond->op == COND_NE || cond->op == COND_GT || cond->op == COND_GE;
	value += cond->bias;
	switch (cond->op) {
	case COND_EQ:
		return value == cond->operand;
	case COND_NE:
		return value != cond->operand;
	case COND_LT:
		return value < cond->operand;
	case COND_LE:
		return value <= cond->operand;
	case COND_GT:
		return value > cond->operand;
	default:
		return value >= cond->operand;
	}
}

/* Whether a condition on text holds. */
__noinline int compare_text(struct hit *hit, struct probe *probe, struct condition *cond)
{
	__u64 words[PATTERN_WORDS] = {};
	bool fits;

	if (!hit || !probe || !cond || read_text(hit, probe, cond->value, words, sizeof(words), sizeof(words)) < 0)
		return UNREADABLE;
	fits = match(cond->operand, 1, words, true) == 0;
	return fits == (cond->op == COND_STRING) ? FITS : FITS_NOT;
}

/* Whether all conditions of the action hold. */
static __always_inline int check_conditions(struct hit *hit, struct probe *probe, struct action *action)
{
#pragma clang loop unroll(disable)
	for (__u32 c = 0; c < MAX_CONDITIONS; c++) {
		struct condition *cond = &action->conditions[c];
		__u32 i = cond->value;

		if (c >= action->nconditions)
			break;
		if (!BOUNDED(i, MAX_VALUES) || hit->faults & (1U << i))
			return UNREADABLE;
		if (cond->op == COND_STRING || cond->op == COND_NOT_STRING) {
			int verdict = compare_text(hit, probe, cond);

			if (verdict == UNREADABLE)
				note_fault(hit, probe, i);
			if (verdict != FITS)
				return verdict;
		} else if (!compare(hit->values[i], hit->faults >> (LARGE_VALUE + i) & 1, cond)) {
			return FITS_NOT;
		}
	}
	return FITS;
}

/*
 * Returns the number of the words in their interner, assigned now if they are new, or ~0, which is not a number, if
 * the limit is reached. Two CPUs may see the same new words at once: the map accepts one of them, and the other
 * returns its number and uses the first one's.
 */
static __always_inline __u32 number_of(struct word_key *key)
{
	struct interner *interner;
	__u32 *known, number;
	struct entry *entry;

	known = bpf_map_lookup_elem(&numbers, key);
	if (known)
		return *known;
	interner = bpf_map_lookup_elem(&interners, &key->interner);
	if (!interner)
		return ~0U;
	if (__sync_fetch_and_add(&interner->accepted, 1) >= interner->limit)
		goto full;
	number = take_number(interner);
	if (number == ~0U)
		goto full;
	if (bpf_map_update_elem(&numbers, key, &number, BPF_NOEXIST)) {
		give_back(interner, number);
		__sync_fetch_and_add(&interner->accepted, -1);
		known = bpf_map_lookup_elem(&numbers, key);
		return known ? *known : ~0U;
	}
	entry = entry_of(interner, number);
	if (entry) {
		__builtin_memcpy(entry->words, key->words, sizeof(entry->words));
		__sync_fetch_and_add(&entry->ready, 1);
	}
	return number;
full:
	__sync_fetch_and_add(&interner->accepted, -1);
	return ~0U;
}

/* Returns the place of a small integer's number, or NULL. */
static __always_inline __u32 *small_number(__u32 interner, __u64 value)
{
	struct small_integers *small;
	__u32 at = value;

	if (value >= SMALL_INTEGERS)
		return NULL;
	small = bpf_map_lookup_elem(&small_integers, &interner);
	return small && BOUNDED(at, SMALL_INTEGERS) ? &small->number[at] : NULL;
}

/* Returns the number of an integer. An integer_key is the beginning of a word_key. */
__noinline __u32 number_of_integer(__u32 interner, __u64 value)
{
	struct word_key key = { .interner = interner, .words = { value } };
	__u32 *small = small_number(interner, value), number;

	if (!small) {
		__u32 *known = bpf_map_lookup_elem(&integers, &key);

		if (known)
			return *known;
	}
	number = number_of(&key);
	if (number == ~0U)
		return number;
	if (small)
		*(volatile __u32 *)small = number + 1;
	else
		bpf_map_update_elem(&integers, &key, &number, BPF_ANY);
	return number;
}

/* The numbers of a metric's labels. */
struct ids {
	__u32 id[MAX_LABELS];
};

__noinline __u32 number_of_set(__u32 interner, struct ids *ids)
{
	struct word_key set = { .interner = interner };

	if (!ids)
		return ~0U;
	for (int l = 0; l < MAX_LABELS; l++)
		set.words[l] = ids->id[l];
	return number_of(&set);
}

/* Clears everything after the first zero byte. */
static __always_inline void cut_at_nul(__u64 *words)
{
	const __u64 ones = 0x0101010101010101ULL;
	__u64 keep = ~0ULL;

#pragma clang loop unroll(disable)
	for (int i = 0; i < TEXT_WORDS; i++) {
		__u64 zeros = (words[i] - ones) & ~words[i] & ones << 7;
		/* The highest bit of the first zero byte; the bits above it may be wrong. */
		__u64 first = zeros & -zeros;

		words[i] &= keep & ((first >> 7) - 1);
		keep &= -((first - 1) >> 63);
	}
}

/* Returns the number of a text label, see enum label_id. */
__noinline __u32 text_id(struct hit *hit, struct probe *probe, struct label *label)
{
	struct word_key key = {};
	__u32 *known = NULL, words, found;

	if (!hit || !probe || !label)
		return ID_UNREADABLE;
	key.interner = label->interner;
	words = label->words;
	if (!BOUNDED(words, TEXT_WORDS + 1) ||
	    read_text(hit, probe, label->value, key.words, words * 8, 8 * TEXT_WORDS) < 0)
		return ID_UNREADABLE;
	if (label->flags & LABEL_NUL)
		cut_at_nul(key.words);
	if (label->npatterns) {
		found = match(label->first_pattern, label->npatterns, key.words, true);
		if (found != NO_MATCH)
			return ID_PATTERN + found;
	}
	if (!(label->flags & LABEL_RAW))
		return ID_PATTERN + label->npatterns;
	if (words <= PATTERN_WORDS)
		known = bpf_map_lookup_elem(&short_texts, &key);
	found = known ? *known : number_of(&key);
	if (!known && words <= PATTERN_WORDS && found != ~0U)
		bpf_map_update_elem(&short_texts, &key, &found, BPF_ANY);
	return found == ~0U ? ID_OTHER : ID_PATTERN + label->npatterns + found;
}

/* Returns the label's value as a number, see enum label_id. */
static __always_inline __u32 label_id(struct hit *hit, struct probe *probe, struct label *label)
{
	__u32 i = label->value, found, *small;

	if (!BOUNDED(i, MAX_VALUES) || hit->faults & (1U << i))
		return ID_UNREADABLE;
	if (label->flags & LABEL_TEXT && used_label_flags & LABEL_TEXT) {
		found = text_id(hit, probe, label);
		if (found == ID_UNREADABLE)
			note_fault(hit, probe, i);
		return found;
	}
	if (label->npatterns) {
		found = match(label->first_pattern, label->npatterns, &hit->values[i], false);
		if (found != NO_MATCH)
			return ID_PATTERN + found;
	}
	if (!(label->flags & LABEL_RAW))
		return ID_PATTERN + label->npatterns;
	small = small_number(label->interner, hit->values[i]);
	found = small ? *(volatile __u32 *)small : 0;
	found = found ? found - 1 : number_of_integer(label->interner, hit->values[i]);
	return found == ~0U ? ID_OTHER : ID_PATTERN + label->npatterns + found;
}

static __always_inline __u32 bucket_of(__u64 value, __u32 which)
{
	struct bounds *set = bpf_map_lookup_elem(&bounds, &which);
	__u32 low = 0;

	if (!set)
		return 0;
#pragma clang loop unroll(full)
	for (__u32 step = (MAX_BOUNDS + 1) / 2; step; step /= 2)
		if (value > set->upper[(low + step - 1) & MAX_BOUNDS])
			low += step;
	return low;
}

/* min and max hold the value with its bias added, plus one, so that 0 can mean "none yet". */
static __always_inline void extreme(__u32 slot, __u64 value, bool max)
{
	__u64 *number = bpf_map_lookup_elem(&slots, &slot);

	if (!number)
		return;
	if (value != ~0ULL)
		value++;
#pragma clang loop unroll(disable)
	for (int tries = 0; tries < 16; tries++) {
		__u64 old = *(volatile __u64 *)number;

		if (old && (max ? old >= value : old <= value))
			return;
		if (__sync_val_compare_and_swap(number, old, value) == old)
			return;
	}
}

/* Returns the series of the hit's label values. */
static __always_inline __u32 series_number(struct hit *hit, struct probe *probe, struct action *action)
{
	struct ids ids = {};
	__u32 number = 0;
	bool overflow = false;

#pragma clang loop unroll(full)
	for (__u32 l = 0; l < MAX_LABELS; l++) {
		struct label *label = &action->labels[l];
		__u32 id;

		if (l >= action->nlabels)
			break;
		id = label_id(hit, probe, label);
		overflow |= id == ID_OTHER;
		number += id * label->multiplier;
		ids.id[l] = id;
	}
	if (action->label_sets != NO_LABEL_SETS) {
		number = number_of_set(action->label_sets, &ids) +
			 1; /* ~0, no number, becomes series 0: "other" in every label */
		overflow |= !number;
	}
	if (overflow)
		add(hit->shard + probe->accounting + ACCT_LABEL_OVERFLOW, 1);
	return number;
}

/* Whether the exporter already has more than enough larger values of this hour. */
static __always_inline bool is_outdone(__u32 floor, __s64 value)
{
	__u32 at = floor + FLOOR_UNTIL;
	__u64 *until = bpf_map_lookup_elem(&slots, &at), *above, end;

	at = floor + FLOOR_ABOVE;
	above = bpf_map_lookup_elem(&slots, &at);
	if (!until || !above)
		return false;
	end = *(volatile __u64 *)until;
	return value <= *(volatile __s64 *)above && bpf_ktime_get_ns() < end;
}

/* Updates one metric. Returns 0, or the accounting slot that says why this metric missed the hit. */
__noinline int act(struct hit *hit, struct probe *probe, struct action *action)
{
	__u32 i, slot, local;
	__u64 value = 1;
	int fits;

	if (!hit || !probe || !action)
		return 0;
	i = action->value;
	if (action->nconditions) {
		fits = check_conditions(hit, probe, action);
		if (fits == UNREADABLE)
			return ACCT_LOST_FAULT;
		if (fits != FITS)
			return 0;
	}
	if (i != NO_VALUE) {
		if (!BOUNDED(i, MAX_VALUES) || hit->faults & (1U << i))
			return ACCT_LOST_FAULT;
		value = hit->values[i];
		/* Only ACTION_LAST shows the value without adding or comparing it. */
		if ((__s64)value < 0 && (action->needs_nonnegative ||
					 (hit->faults >> (LARGE_VALUE + i) & 1 && action->kind != ACTION_LAST)))
			return ACCT_LOST_NEGATIVE;
	}
	slot = action->slot;
	if (action->nlabels)
		slot += series_number(hit, probe, action) * action->stride;
	local = hit->shard + slot;
	switch (action->kind) {
	case ACTION_COUNT:
		add(local, 1);
		break;
	case ACTION_ADD:
		add(local, value);
		add(local + 1, 1);
		break;
	case ACTION_HISTOGRAM:
		add(local, value);
		add(local + 1 + bucket_of(value + action->bias, action->bounds), 1);
		break;
	case ACTION_LAST: {
		__u64 *number = bpf_map_lookup_elem(&slots, &slot);

		if (number)
			*(volatile __u64 *)number = value;
		slot++;
		number = bpf_map_lookup_elem(&slots, &slot);
		if (number)
			*(volatile __u64 *)number = bpf_ktime_get_ns();
		break;
	}
	case ACTION_MIN:
	case ACTION_MAX:
		extreme(slot, value + action->bias, action->kind == ACTION_MAX);
		break;
	case ACTION_WORST:
	case ACTION_SLOW:
		if ((__s64)value <= (__s64)action->bias)
			break;
		if (action->kind == ACTION_WORST && is_outdone(action->bounds, value))
			break;
		if (!(hit->faults >> SLOW_HIT & 1))
			add(local + SLOW_SEEN, 1);
		hit->faults |= 1U << SLOW_HIT;
		break;
	}
	return 0;
}

/* Updates all metrics of the hit. Returns 0, or the accounting slot of the first loss. */
static __always_inline int aggregate(struct hit *hit, struct probe *probe)
{
	__u32 first = probe->first_action, n = probe->nactions;
	int lost = 0;

#pragma clang loop unroll(disable)
	for (__u32 a = 0; a < MAX_ACTIONS; a++) {
		__u32 at = first + a;
		struct action *action;
		int loss;

		if (a >= n)
			break;
		action = bpf_map_lookup_elem(&actions, &at);
		if (!action)
			break;
		loss = act(hit, probe, action);
		if (!lost)
			lost = loss;
	}
	return lost;
}

#endif
