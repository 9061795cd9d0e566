/* row_check.h - is one recorded row consistent with itself? Asked before a row is written (numbers
 * as computed) and when a shard is verified (numbers as stored).
 */
#ifndef TDGEN_RECORD_ROW_CHECK_H
#define TDGEN_RECORD_ROW_CHECK_H

#include "record/row_view.h"

/* True when all holds. `deep`: in mode full the sums over the whole vocabulary are made as well (V
 * exponentials); without it only that every logit is a number. */
bool td_row_check(const td_row_view *r, bool deep, td_row_problem *p);

/* Nearest half; a finite value below the range of F16 becomes its lowest finite one, since -inf
 * would say that the token is impossible. -inf (a free place) stays. */
uint16_t td_logprob_to_f16(float x);

#endif
