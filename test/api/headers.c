/* The public headers in strict C11, and that they carry no more than they need. */
#include <tdgen/record.h>
#include <tdgen/teacher.h>
#include <tdgen/tdgen.h>

int td_headers_in_c(void);

int td_headers_in_c(void) {
    tdgen_teacher_options t = TDGEN_TEACHER_OPTIONS_INIT;
    tdgen_record_options r = TDGEN_RECORD_OPTIONS_INIT;
    return (int)(t.struct_size + r.struct_size);
}
