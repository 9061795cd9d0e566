# One process per checkpoint, in order, so that what it prints is a table.
td_test(test_families SOURCES model/test_families.c model/harness.c model/fixture.c
        LIBS td_model td_device ARGS --jobs 1 LABELS model families)
