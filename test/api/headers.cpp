// The public headers in C++11.
#include <tdgen/record.h>
#include <tdgen/teacher.h>

int td_headers_in_cpp() {
    tdgen_teacher_options t = TDGEN_TEACHER_OPTIONS_INIT;
    tdgen_record_options r = TDGEN_RECORD_OPTIONS_INIT;
    return static_cast<int>(t.struct_size + r.struct_size) + tdgen_api_version();
}
