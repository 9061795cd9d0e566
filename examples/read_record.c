/* read_record.c - what a folder holds, and one of its samples, position by position.
 *
 *   read_record DIR [SAMPLE]
 */
#include <stdio.h>
#include <stdlib.h>
#include <tdgen/record.h>

static int print_sample(tdgen_record *r, int64_t index, tdgen_error *err) {
    const tdgen_sample *s;
    const tdgen_row *row;
    const tdgen_distribution *d;
    if (tdgen_record_get_sample(r, index, &s, err) != TDGEN_OK)
        return 1;
    printf("sample %lld: dataset row %lld, id %s, %d tokens, %d rows\n", (long long)index,
           (long long)s->dataset_row, s->id ? s->id : "none", (int)s->n_tokens, (int)s->n_rows);
    printf("position target logprob rank entropy tail\n");
    for (int32_t k = 0; k < s->n_rows; k++) {
        if (tdgen_record_get_row(r, index, k, &row, err) != TDGEN_OK)
            return 1;
        printf("%d %d %.9g %d %.9g %.9g\n", (int)row->position, (int)row->target,
               row->target_logprob, (int)row->target_rank, row->entropy, row->tail_mass);
    }
    if (s->n_rows == 0 || tdgen_record_get_distribution(r, index, 0, &d, err) != TDGEN_OK)
        return s->n_rows != 0;
    for (int32_t i = 0; i < d->n; i++)
        printf("candidate %d %.9g\n", (int)d->ids[i], d->probabilities[i]);
    return 0;
}

int main(int argc, char **argv) {
    tdgen_record *r = NULL;
    tdgen_error err = {TDGEN_OK, ""};
    if (argc < 2) {
        fprintf(stderr, "usage: read_record DIR [SAMPLE]\n");
        return 2;
    }
    int failed = tdgen_record_open(argv[1], NULL, &r, &err) != TDGEN_OK;
    const tdgen_record_info *info = tdgen_record_get_info(r);
    if (!failed)
        printf("shards %lld samples %lld tokens %lld rows %lld\n", (long long)info->n_shards,
               (long long)info->n_samples, (long long)info->n_tokens, (long long)info->n_rows);
    failed = failed || print_sample(r, argc > 2 ? atoll(argv[2]) : 0, &err);
    if (failed)
        fprintf(stderr, "read_record: %s\n", err.text);
    tdgen_record_close(r);
    return failed;
}
