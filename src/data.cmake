# data/ - sources (jsonl, text, token files), shards, packing, statistics.
add_library(td_data STATIC data/unpack.c data/lines.c data/format.c data/row.c data/tokens.c data/tokens_raw.c data/shard.c
                           data/source.c data/stats.c)
target_link_libraries(td_data PUBLIC td_common td_config td_tokenizer
                              PRIVATE td_safetensors PkgConfig::xxhash PkgConfig::zlib PkgConfig::zstd)
