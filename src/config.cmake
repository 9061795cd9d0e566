add_library(td_config STATIC config.c config_file.c config_keys.c config_value.c)
target_link_libraries(td_config PUBLIC td_common PRIVATE PkgConfig::inih)
