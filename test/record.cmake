add_library(td_record_fixture STATIC record/fixture.c)
target_link_libraries(td_record_fixture PUBLIC td_record)
target_include_directories(td_record_fixture PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/record)

td_test(test_record_writer SOURCES record/test_writer.c LIBS td_record_fixture LABELS record)
td_test(test_record_output SOURCES record/test_output.c LIBS td_record_fixture LABELS record)
td_test(test_record_verify SOURCES record/test_verify.c LIBS td_record_fixture LABELS record)
