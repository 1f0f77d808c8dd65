/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mutate.h - protocol steps that a test build (-DBLKCACHE_MUTATE) can leave out, one at a time, to show that the
 * power-loss rig notices. In every other build MUTATE(...) is 0 and costs nothing. `mutation` is set before any cache
 * is opened.
 */
#ifndef UTIL_MUTATE_H
#define UTIL_MUTATE_H

#ifdef BLKCACHE_MUTATE

#define MUTATIONS(X)                                                                                                   \
	X(DATA_WRITE, "data-write", "the row is committed without the epoch's blocks in the data file")                \
	X(DATA_FLUSH, "data-flush", "the data file is not flushed beside the commit")                                  \
	X(COMMIT_WAIT, "flush-before-commit", "a flush returns before its epoch's row is committed")                   \
	X(SLOT_REUSE, "slot-reuse", "a slot given up is free at once, not when its epoch is durable")                  \
	X(FRESH_KEPT, "fresh-kept", "blocks of a sealed epoch still count as the open one's: written in place")        \
	X(CRC_CHECK, "crc-check", "recovery believes the data file without checking")                                  \
	X(INTENT_MARK, "intent-mark", "no write-intent mark before a write to backing")                                \
	X(INTENT_DROP, "intent-drop", "recovery keeps clean lines of marked regions")                                  \
	X(WITNESS_DROP, "witness-drop", "our own writes do not end what is remembered of the blocks they go to")       \
	X(WARM, "warm", "recovery drops all clean lines")                                                              \
	X(INTENT_CLEAR, "intent-clear", "marks are cleared without flushing the backing device")                       \
	X(INTENT_EPOCH, "intent-epoch", "marks are cleared before the cache's side is durable")                        \
	X(CLEAN_DURABLE, "clean-durable", "the cleaner writes blocks to backing before their epoch is durable")        \
	X(CLEAN_FLUSH, "clean-flush", "blocks become clean without a flush of the backing device")                     \
	X(CLEAN_EARLY, "clean-early", "blocks are recorded as clean before the backing device is flushed")             \
	X(THROUGH_FLUSH, "through-flush", "a dirty block is replaced by a write to backing that was not flushed")      \
	X(BACKING_FLUSH, "backing-flush", "a flush does not flush the backing device")                                 \
	X(DISCARD_RECORD, "discard-record", "a discard is not recorded before backing is zeroed")                      \
	X(DISCARD_DONE, "discard-done", "a discard is recorded as done before backing was flushed")                    \
	X(DISCARD_REDO, "discard-redo", "recovery does not repeat unfinished discards")                                \
	X(DISCARD_DROP, "discard-drop", "recovery repeats a discard and keeps the cached blocks")                      \
	X(DISCARD_EMPTY, "discard-empty",                                                                              \
	  "a large discard zeroes backing before it is durable that nothing is cached there")                          \
	X(INLINE_REDO, "inline-redo", "recovery does not write the rows' blocks to their slots")                       \
	X(INLINE_FLUSH, "inline-flush", "recovery does not flush what it wrote to the slots")                          \
	X(FOUND_FLUSH, "found-flush", "recovery does not flush what it found in the slots after a kill")               \
	X(DURABLE_UPTO, "durable-upto", "rows claim that epochs are in the data file that are in rows only")           \
	X(RECOVER_COMMIT, "recover-commit", "marks are cleared before what recovery dropped is recorded")              \
	X(DROPPED_ROWS, "dropped-rows", "recovery leaves the rows of dropped epochs in the journal")                   \
	X(JOURNAL_SYNC, "journal-sync", "the journal does not sync its log")                                           \
	X(RING_SYNC, "ring-sync", "the ring is not synced after a row was written")                                    \
	X(WAL_CHECKPOINT, "wal-checkpoint",                                                                            \
	  "the journal syncs its log, but neither the log nor the database when the "                                  \
	  "one is written to the other")                                                                               \
	X(FOLD_PATCH, "fold-patch", "folding deletes epoch rows without patching the snapshot")                        \
	X(MERGE_PUT, "merge-put", "merging frees the ring without the row that takes its place")                       \
	X(MERGE_TABLE, "merge-table", "merging leaves out the table's epochs that lie between those of the ring")      \
	X(LOW_FOLD, "low-fold", "without space, folding does not wait for the data file")                              \
	X(REMOVE_LINES, "remove-lines", "a volume's row is removed before its lines are")                              \
	X(VOLUME_SINCE, "volume-since", "a discard counts for whatever volume has its id now")                         \
	X(VOID_EARLY, "void-early", "the note that the journal is void is removed before its lines are gone")          \
	X(VOID_DISCARD, "void-discard", "a discard of a void journal is repeated")                                     \
	X(CHANGED_NOTE, "changed-note", "lines of a changed backing device go before it is durable that it changed")    \
	X(IDENTITY_SYNC, "identity-sync", "a volume's row holds a modification time that was not synced")              \
	X(CREATE_NOTE, "create-note", "the files of a new cache are made before the note beside them is durable")      \
	X(REMOVE_SYNC, "remove-sync",                                                                                  \
	  "replacing a cache removes the data file before the journal's removal is synced")                            \
	X(CREATE_SYNC, "create-sync", "a new journal gets its name before it is synced")

/* Steps that only matter when threads meet at the wrong moment, which the rig cannot arrange: a test of schedules has
 * to notice these. Some fail test_intent or test_flushes, too (BLKCACHE_MUTATION=NAME): flush-overlap, intent-lower,
 * begin-failed, settle-held. */
#define RACES(X)                                                                                                       \
	X(FLUSH_OVERLAP, "flush-overlap",                                                                              \
	  "a flush of a file does not wait for those that overlap it and may have its error")                          \
	X(INTENT_LOWER, "intent-lower", "a write that ends stores its epoch over a later one")                         \
	X(INTENT_RECHECK, "intent-recheck", "marks are cleared by what was seen before writers were kept out")         \
	X(BEGIN_FAILED, "begin-failed", "a write that meets the failure of the cache goes on without mark or note")    \
	X(SETTLE_HELD, "settle-held", "a volume's row says `not in use` while the cleaner or a discard is at work")    \
	X(SETTLE_RECHECK, "settle-recheck", "a row is settled by what was seen before writers were kept out")          \
	X(INTENT_CLEARING, "intent-clearing", "a write goes on with a mark that is being cleared")                     \
	X(DURABLE_SEALING, "durable-sealing", "an epoch that is being sealed counts as an empty one")                  \
	X(CLEAN_CHANGED, "clean-changed", "a block that was written while the cleaner had it becomes clean")           \
	X(DISCARD_CLEANED, "discard-cleaned", "a block that becomes clean during a discard stays")                     \
	X(FLUSH_SEQ, "flush-seq", "a flush counts for the writes to backing that ended while it was under way")        \
	X(HIT_RECHECK, "hit-recheck", "a hit in RAM does not look whether its line has changed meanwhile")

#define MUTATION_ENUM(id, name, what) MUT_##id,
enum mutation { MUT_NONE, MUTATIONS(MUTATION_ENUM) RACES(MUTATION_ENUM) MUT_COUNT };
#define MUT_FIRST_RACE MUT_FLUSH_OVERLAP

extern int mutation;
extern const char *const mutation_names[MUT_COUNT], *const mutation_what[MUT_COUNT];

#define MUTATE(id) (mutation == MUT_##id)
#else
#define MUTATE(id) 0
#endif

#endif
