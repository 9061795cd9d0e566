/* writer.c - the writer's thread commits the shards that are complete. */
#include "run/state.h"

#include "base/clock.h"

/* The next complete shard; NULL when no more is to be committed: every opened one is, or the run
 * stops and no group can complete another one, or a device was lost. */
static td_open_shard *next_complete(td_run_state *run) {
    td_open_shard *o = NULL;
    td_lock_acquire(&run->lock);
    while (!td_run_is_lost(run) && !(o = td_open_shards_pop(run->open))) {
        bool no_more = td_verdict_feeder_has_ended(run->verdict) &&
                       (td_open_shards_empty(run->open) ||
                        (td_run_stopping(run) && td_verdict_groups_have_ended(run->verdict)));
        if (no_more)
            break;
        td_lock_wait(&run->lock);
    }
    td_lock_release(&run->lock);
    return o;
}

/* At its end it drops what is incomplete. After the loss of a device it ends at once and leaves what
 * is open, complete or not, to the thread that asks what was in flight. */
void *td_writer_main(void *arg) {
    td_run_state *run = arg;
    for (td_open_shard *o; (o = next_complete(run));) {
        td_error err = {0};
        td_activity_begin(&run->writing, o->shard->number, td_time_s());
        td_status rc = td_shard_writer_commit(o->writer, &err);
        td_activity_end(&run->writing);
        if (rc == TD_OK)
            atomic_fetch_add(&run->counters.n_shards_written, 1);
        else
            td_run_fail(run, &err);
        td_open_shards_release(run->open, o);
    }
    if (!td_run_is_lost(run))
        td_open_shards_drop(run->open);
    td_lock_acquire(&run->lock);
    td_verdict_writer_ended(run->verdict);
    bool hung = td_verdict_n_hung(run->verdict) > 0;
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
    if (hung) /* all is saved; the main thread may be held by the driver that hangs */
        td_run_arm_watchdog();
    return NULL;
}
