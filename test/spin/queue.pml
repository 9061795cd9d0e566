/* Spin model of src/queue/queue.c: claim, begin_commit, done, fail, release, retire, reinstate,
 * termination, for 3 owners and 4 items over a ring of 2 slots.
 *
 *   owner 0   always works
 *   owner 1   its device may fail: it gives its work back, retires itself and is reinstated, once
 *   owner 2   is retired by another thread at any moment of its life, or never; it may hang, answer
 *             late, leave, or be reinstated, also while that thread still looks through the slots
 *
 * Each atomic operation of the C code is one `atomic` or `d_step` here; between any two of them every
 * other process may run. The memory orders are not modelled: the model is sequentially consistent,
 * and the C comments argue why the weaker orders used give no more behaviours.
 *
 * Checked exhaustively (tools/lib/check_spin.sh), numbered as in queue.h:
 *   I1 an item is committed exactly once, by an owner whose claim was valid at begin_commit
 *   I2 what is claimed was FREE and is the item of that number; the retry ring has room for all
 *   I3 retire takes only claims of the epoch that it ends
 *   I4 no slot is used again before its item is done
 *   I5 the processes end, and they end only when every item is committed (with a lost item an owner
 *      would wait for ever, which Spin reports as an invalid end state)
 *
 * -DBUG_... breaks one rule each; check_spin.sh demands that every one of them is found.
 */
#define N_ITEMS 4
#define N_OWNERS 3
#define CAPACITY 2
#define MAX_FAILS 1 /* per item, to keep the model finite */

mtype = { EMPTY, FREE, CLAIMED, COMMITTING, DONE };

typedef slot_t {
    mtype state;
    byte owner;
    byte epoch;
    byte number; /* the generation of the C word, as the item's number */
    byte tries;
};

slot_t slots[CAPACITY];
chan retry = [CAPACITY] of { byte };
byte published = 0;
byte cursor = 0;
byte n_done = 0;
bool closed = false;
byte epochs[N_OWNERS]; /* odd = retired */
bool doomed = false;   /* owner 2 will be retired, and may hang before it is */
byte commits[N_ITEMS];

#define SLOT(n) slots[(n) % CAPACITY]
#ifdef BUG_LEAVE_AT_THE_END_OF_THE_CURSOR
#define FINISHED (closed && cursor == published)
#else
#define FINISHED (closed && n_done == published)
#endif
#define RETIRED(me) (epochs[me] & 1)
#ifdef BUG_COMMIT_WITHOUT_LOOKING
#define MINE(n, me) (SLOT(n).state == CLAIMED || SLOT(n).state == FREE)
#else
#define MINE(n, me) (SLOT(n).state == CLAIMED && SLOT(n).owner == me && SLOT(n).number == n)
#endif

/* CLAIMED by this owner -> FREE, and back through the retry ring. `ok` says whether it was his. */
inline give_back(me, n, add, ok) {
    atomic {
        ok = (SLOT(n).state == CLAIMED && SLOT(n).owner == me && SLOT(n).number == n);
        if
        :: ok ->
            SLOT(n).state = FREE; SLOT(n).owner = 0; SLOT(n).epoch = 0;
            SLOT(n).tries = SLOT(n).tries + add
        :: else
        fi
    }
#ifndef BUG_FAIL_WITHOUT_REQUEUE
    if
    :: ok -> assert(nfull(retry)); retry ! n
    :: else
    fi
#endif
}

/* td_queue_retire: the epoch, then every slot. `e` is the epoch that ends, `i` a counter. */
inline retire(who, e, i, n, ok) {
    d_step { e = epochs[who]; assert(!(e & 1)); epochs[who] = e + 1; i = 0 }
    do
    :: i < CAPACITY ->
        atomic {
#ifdef BUG_RETIRE_ANY_EPOCH
            ok = (slots[i].state == CLAIMED && slots[i].owner == who);
#else
            ok = (slots[i].state == CLAIMED && slots[i].owner == who && slots[i].epoch == e);
#endif
            if
            :: ok ->
                assert(slots[i].epoch == e); /* I3 */
                n = slots[i].number;
                slots[i].state = FREE; slots[i].owner = 0; slots[i].epoch = 0;
                slots[i].tries = MAX_FAILS
            :: else
            fi;
            i++
        }
        if
        :: ok -> assert(nfull(retry)); retry ! n
        :: else
        fi
    :: else -> break
    od;
    atomic { i = 0; n = 0; ok = false; e = 0 }
}

proctype producer() {
    byte i = 0;
    do
    :: i < N_ITEMS ->
        /* back-pressure: td_queue_publish returns false until this holds */
#ifdef BUG_NO_BACK_PRESSURE
        true;
#else
        (SLOT(i).state == EMPTY || SLOT(i).state == DONE);
#endif
        d_step {
            assert(SLOT(i).state == EMPTY || SLOT(i).state == DONE); /* I4 */
            assert(i < CAPACITY || SLOT(i).number + CAPACITY == i);
            SLOT(i).number = i;
            SLOT(i).tries = 0;
            SLOT(i).state = FREE
        }
        published = i + 1;
        i++
    :: else -> break
    od;
    closed = true
}

proctype group(byte me) {
    byte n, e, i, e2;
    bool ok, have;
    do
    :: FINISHED -> break
    :: RETIRED(me) && me == 2 -> /* td_queue_claim gives a retired owner nothing */
        if
        :: break
        :: epochs[me] == 1 -> epochs[me] = 2 /* reinstated; it holds no claim here */
        fi
    :: !RETIRED(me) && !FINISHED && (nempty(retry) || cursor < published) ->
        e = epochs[me];
        if
        :: e & 1 -> goto next
        :: else
        fi;
        /* the retry ring is tried before the cursor */
        atomic {
            if
            :: nempty(retry) -> retry ? n; have = true
            :: empty(retry)
            fi
        }
        if
        :: have -> skip
        :: else ->
            atomic {
                if
                :: cursor < published -> n = cursor; cursor++; have = true
                :: else
                fi
            }
        fi;
        if
        :: !have -> skip
        :: else ->
            d_step { /* take(): FREE -> CLAIMED */
                assert(SLOT(n).state == FREE && SLOT(n).number == n); /* I2 */
                SLOT(n).state = CLAIMED;
                SLOT(n).owner = me;
                SLOT(n).epoch = e;
                ok = false
            }
            if
#ifdef BUG_NO_SECOND_LOOK
            :: false -> skip
#else
            :: epochs[me] != e -> give_back(me, n, 0, ok) /* retired between the look and the take */
#endif
            :: else ->
                if
                :: me == 2 && doomed && e == 0 -> break /* its device hangs; it never comes back */
                :: SLOT(n).tries < MAX_FAILS -> give_back(me, n, 1, ok) /* the work failed */
                :: me == 1 && e == 0 -> /* so did the device: out, a probe, and back */
                    give_back(me, n, 0, ok);
                    d_step { n = 0; ok = false; have = false; e = 0 }
                    retire(me, e2, i, n, ok);
                    epochs[me] = 2
                :: give_back(me, n, 0, ok) /* claimed, not begun */
                :: true ->
                    d_step { /* begin_commit */
                        ok = MINE(n, me);
                        if
                        :: ok -> SLOT(n).state = COMMITTING
                        :: else
                        fi
                    }
                    if
                    :: ok ->
                        d_step {
                            commits[n] = commits[n] + 1;
                            assert(commits[n] == 1); /* I1 */
                            assert(SLOT(n).state == COMMITTING && SLOT(n).owner == me);
                            SLOT(n).state = DONE; SLOT(n).owner = 0; SLOT(n).tries = 0;
                            SLOT(n).epoch = 0
                        }
                        d_step { n_done = n_done + 1; assert(n_done <= published) } /* I5 */
                    :: else -> skip /* a late answer is discarded */
                    fi
                fi
            fi
        fi;
next:   atomic { n = 0; ok = false; have = false; e = 0 } /* dead values only multiply states */
    od
}

/* Declares owner 2 dead at some moment, or never. It may be alive, hang, or answer late. */
proctype retirer() {
    byte i, n, e;
    bool ok;
    if
    :: true ->
        doomed = true;
        retire(2, e, i, n, ok)
    :: true -> skip
    fi
}

init {
    byte i;
    atomic {
        i = 0;
        do
        :: i < CAPACITY -> slots[i].state = EMPTY; i++
        :: else -> break
        od;
        run producer();
        run group(0);
        run group(1);
        run group(2);
        run retirer()
    }
    (_nr_pr == 1); /* all others have ended: nobody waits for ever */
    assert(closed && n_done == N_ITEMS);
    i = 0;
    do
    :: i < N_ITEMS -> assert(commits[i] == 1); i++
    :: else -> break
    od
}
