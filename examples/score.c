/* score.c - what a teacher says of one sequence of token ids.
 *
 *   score TEACHER_DIR DEVICE ID...      DEVICE: cpu, cuda:0, auto
 */
#include <stdio.h>
#include <stdlib.h>
#include <tdgen/teacher.h>

static int print_scores(const tdgen_scores *s, void *user) {
    (void)user;
    printf("position target logprob rank entropy tail\n");
    for (int32_t r = 0; r < s->n_rows; r++)
        printf("%d %d %.9g %d %.9g %.9g\n", (int)s->positions[r], (int)s->targets[r],
               s->target_logprobs[r], (int)s->target_ranks[r], s->entropies[r], s->tail_masses[r]);
    return 0;
}

int main(int argc, char **argv) {
    tdgen_teacher_options options = TDGEN_TEACHER_OPTIONS_INIT;
    tdgen_teacher *t = NULL;
    tdgen_error err = {TDGEN_OK, ""};
    if (argc < 4) {
        fprintf(stderr, "usage: score TEACHER_DIR DEVICE ID...\n");
        return 2;
    }
    int32_t n_ids = argc - 3, *ids = malloc((size_t)n_ids * sizeof *ids);
    if (!ids)
        return 1;
    for (int32_t i = 0; i < n_ids; i++)
        ids[i] = (int32_t)atoi(argv[3 + i]);
    tdgen_sequence sequence = {ids, NULL, n_ids}; /* no loss mask: every position but the last */
    options.device = argv[2];
    int failed = tdgen_teacher_open(argv[1], &options, &t, &err) != TDGEN_OK ||
                 tdgen_teacher_score(t, &sequence, 1, print_scores, NULL, &err) != TDGEN_OK;
    if (failed)
        fprintf(stderr, "score: %s\n", err.text);
    tdgen_teacher_close(t);
    free(ids);
    return failed;
}
