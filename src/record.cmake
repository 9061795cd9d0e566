add_library(td_record STATIC
  record/layout.c record/identity.c record/index.c record/shard_file.c record/output.c record/row_check.c
  record/text.c record/verify.c record/inspect.c record/coverage.c record/merge.c record/writer.c
  record/spec.c record/pack.c record/row_view.c record/shard_temp.c record/spool.c record/shard_zstd.c
  record/recheck.c record/inspect_json.c record/inspect_html.c)
target_link_libraries(td_record
  PUBLIC td_common td_config td_safetensors td_tokenizer
  PRIVATE PkgConfig::xxhash PkgConfig::zstd)
