/* relocate.c - linked into every test: where the repository is.
 *
 * Tests name files by paths below TD_SOURCE_DIR, which is ".": before main they go to the
 * repository, or to the folder that the environment's TD_SOURCE_DIR names (an unpacked bundle, see
 * tools/bundle). So a test program runs from anywhere and on another machine.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void go_to_source(void) {
    const char *dir = getenv("TD_SOURCE_DIR");
    if (chdir(dir && dir[0] ? dir : TD_BUILT_SOURCE_DIR) != 0) {
        fprintf(stderr, "cannot enter %s; set TD_SOURCE_DIR to tdgen's source or bundle\n",
                dir && dir[0] ? dir : TD_BUILT_SOURCE_DIR);
        _exit(1);
    }
}
