/* app.h - the program: one command per function, each from its arguments to an exit code. main.c
 * calls them; nothing else does. Errors are on stderr, results on stdout.
 */
#ifndef TDGEN_APP_APP_H
#define TDGEN_APP_APP_H

/* tdgen [-c run.ini] [section.key=value ...] [--dry-run | --simulate] and tdgen COMMAND ...; argv as
 * main got it. Returns the exit code of the process. */
int td_app_main(int argc, char **argv);

#endif
