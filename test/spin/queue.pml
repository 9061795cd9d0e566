/* Spin model of src/sched/queue.c: claim, begin_commit, done, fail, release, retire, termination, for
 * 3 owners and 4 items over a ring of 2 slots, with one owner retired at any moment of its life.
 *
 * Each atomic operation of the C code is one `atomic` or `d_step` here; between any two of them every
 * other process may run. The memory orders are not modelled: the model is sequentially consistent,
 * and the C comments argue why the weaker orders used give no more behaviours.
 *
 * Checked exhaustively (tools/check):
 *   - an item is committed exactly once, by an owner whose claim was valid at begin_commit
 *   - no slot is reused before its item is done
 *   - the processes end, and they end only when every item is committed (no lost item: an owner would
 *     wait for ever, which Spin reports as an invalid end state)
 */
#define N_ITEMS 4
#define N_OWNERS 3
#define CAPACITY 2
#define MAX_FAILS 1 /* per item, to keep the model finite */

mtype = { EMPTY, FREE, CLAIMED, COMMITTING, DONE };

typedef slot_t {
    mtype state;
    byte owner;
    byte number; /* the generation of the C word, as the item's number */
    byte tries;
};

slot_t slots[CAPACITY];
chan retry = [CAPACITY] of { byte };
byte published = 0;
byte cursor = 0;
byte n_done = 0;
bool closed = false;
bool retired[N_OWNERS];
bool doomed = false; /* owner 2 will be retired, and may hang before it is */
byte commits[N_ITEMS];

#define SLOT(n) slots[(n) % CAPACITY]
#define FINISHED (closed && n_done == published)

/* CLAIMED by this owner -> FREE, and back through the retry ring. `ok` says whether it was his. */
inline give_back(me, n, add, ok) {
    atomic {
        ok = (SLOT(n).state == CLAIMED && SLOT(n).owner == me && SLOT(n).number == n);
        if
        :: ok -> SLOT(n).state = FREE; SLOT(n).owner = 0; SLOT(n).tries = SLOT(n).tries + add
        :: else
        fi
    }
    if
    :: ok -> assert(nfull(retry)); retry ! n
    :: else
    fi
}

proctype producer() {
    byte i = 0;
    do
    :: i < N_ITEMS ->
        /* back-pressure: td_queue_publish returns false until this holds */
        (SLOT(i).state == EMPTY || SLOT(i).state == DONE);
        atomic {
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
    byte n;
    bool ok, have;
    do
    :: FINISHED -> break
    :: retired[me] -> break /* td_queue_claim gives a retired owner nothing */
    :: !retired[me] && !FINISHED && (nempty(retry) || cursor < published) ->
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
            atomic { /* take(): FREE -> CLAIMED */
                assert(SLOT(n).state == FREE && SLOT(n).number == n);
                SLOT(n).state = CLAIMED;
                SLOT(n).owner = me;
                ok = false
            }
            if
            :: retired[me] -> give_back(me, n, 0, ok) /* retired between the look and the take */
            :: else ->
                if
                :: me == 2 && doomed -> break /* its device hangs; the thread never comes back */
                :: SLOT(n).tries < MAX_FAILS -> give_back(me, n, 1, ok) /* the work failed */
                :: give_back(me, n, 0, ok)                             /* claimed, not begun */
                :: true ->
                    atomic { /* begin_commit */
                        ok = (SLOT(n).state == CLAIMED && SLOT(n).owner == me && SLOT(n).number == n);
                        if
                        :: ok -> SLOT(n).state = COMMITTING
                        :: else
                        fi
                    }
                    if
                    :: ok ->
                        commits[n] = commits[n] + 1;
                        assert(commits[n] == 1);
                        assert(SLOT(n).state == COMMITTING && SLOT(n).owner == me);
                        d_step { SLOT(n).state = DONE; SLOT(n).owner = 0; SLOT(n).tries = 0 }
                        n_done = n_done + 1
                    :: else -> skip /* a late answer is discarded */
                    fi
                fi
            fi
        fi;
        d_step { n = 0; ok = false; have = false } /* dead values only multiply states */
    od
}

/* Declares owner 2 dead at some moment, or never. It may be alive, hang, or answer late. */
proctype retirer() {
    byte i, n;
    bool ok;
    if
    :: true ->
        doomed = true;
        retired[2] = true;
        i = 0;
        do
        :: i < CAPACITY ->
            atomic {
                ok = (slots[i].state == CLAIMED && slots[i].owner == 2);
                n = slots[i].number;
                if
                :: ok -> slots[i].state = FREE; slots[i].owner = 0; slots[i].tries = MAX_FAILS
                :: else
                fi
            }
            if
            :: ok -> assert(nfull(retry)); retry ! n
            :: else
            fi;
            i++
        :: else -> break
        od
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
