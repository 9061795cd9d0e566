/* guard.h - what ends a process without a word, made to say it, and with an exit code.
 *
 * For the program alone: signal handlers and the allocator of the JSON library belong to a process, so
 * libtdgen touches none of them.
 */
#ifndef TDGEN_APP_GUARD_H
#define TDGEN_APP_GUARD_H

/* Before anything else, once. */
void td_guard_install(void);
/* The program ends by itself from here on: exit() is no surprise any more. */
void td_guard_leave(void);

#endif
