/* state.c - what any thread of a run may say or ask without holding its lock. */
#include "run/state.h"

void td_run_fail(td_run_state *run, const td_error *err) {
    td_lock_acquire(&run->lock);
    td_verdict_fail(run->verdict, err);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
}

void td_run_stop(td_run_state *run) {
    td_lock_acquire(&run->lock);
    td_verdict_stop(run->verdict);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
}

static bool uses_faulted(const td_group *g) {
    for (int32_t i = 0; i < g->plan->n_stages; i++) {
        const td_device *d = g->stages[i].device;
        if (d->ops->faulted && d->ops->faulted(d))
            return true;
    }
    return false;
}

void td_run_lost(td_run_state *run, td_group *g, const td_error *err) {
    td_lock_acquire(&run->lock);
    bool tell = !td_run_is_lost(run);
    if (!tell && g) {
        /* What the device itself says is worth more than what others say of the process. */
        int32_t met = td_verdict_lost_group(run->verdict, NULL);
        tell = uses_faulted(g) && (met < 0 || !uses_faulted(&run->groups[met]));
    }
    if (tell)
        td_verdict_lose(run->verdict, g ? (int32_t)g->id : -1, err);
    td_verdict_fail(run->verdict, err);
    td_lock_notify(&run->lock);
    td_lock_release(&run->lock);
}

bool td_run_retire(td_run_state *run, td_group *g, bool hung, const td_error *why) {
    td_lock_acquire(&run->lock);
    bool last = td_verdict_retire(run->verdict, g->id, hung, why);
    td_lock_release(&run->lock);
    return last;
}

td_group_verdict td_run_group_verdict(td_run_state *run, const td_group *g) {
    td_lock_acquire(&run->lock);
    td_group_verdict v = *td_verdict_group(run->verdict, g->id);
    td_lock_release(&run->lock);
    return v;
}

int32_t td_run_n_hung(td_run_state *run) {
    td_lock_acquire(&run->lock);
    int32_t n = td_verdict_n_hung(run->verdict);
    td_lock_release(&run->lock);
    return n;
}

int32_t td_run_n_retired(td_run_state *run) {
    td_lock_acquire(&run->lock);
    int32_t n = td_verdict_n_retired(run->verdict);
    td_lock_release(&run->lock);
    return n;
}
