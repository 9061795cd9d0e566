/* process.c - see process.h. */
#include "base/process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned long long start_of(long pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = '\0';
    /* The name, in brackets, may hold anything: what follows is counted from its last bracket. */
    const char *p = strrchr(text, ')');
    for (int i = 0; p && i < 20; i++)
        p = strchr(p + 1, ' ');
    return p ? strtoull(p + 1, NULL, 10) : 0;
}

td_process td_process_self(void) {
    td_process p = {.pid = (long)getpid()};
    if (gethostname(p.host, sizeof p.host - 1) != 0 || !p.host[0])
        strcpy(p.host, "?");
    for (char *c = p.host; *c; c++)
        if (*c <= ' ' || *c > '~')
            *c = '?';
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!f || fscanf(f, "%47s", p.boot) != 1)
        strcpy(p.boot, "?");
    if (f)
        fclose(f);
    p.start = start_of(p.pid);
    return p;
}

bool td_process_same(const td_process *a, const td_process *b) {
    return a->pid == b->pid && a->start == b->start && strcmp(a->host, b->host) == 0 &&
           strcmp(a->boot, b->boot) == 0;
}

bool td_process_is_gone(const td_process *p, const td_process *self) {
    return strcmp(p->host, self->host) == 0 &&
           (strcmp(p->boot, self->boot) != 0 || start_of(p->pid) != p->start);
}
