# The tokenizer needs no device and no weights: `tdgen tokenize` and the data room link only this.
# utf8proc gives NFC in 350 kB.
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)

add_library(td_tokenizer STATIC
  model/tok_added.c model/tok_bpe.c model/tok_bpe_huge.c model/tok_bpe_load.c model/tok_char.c model/tok_charsmap.c
  model/tok_decode.c model/tok_encode.c model/tok_load.c model/tok_model.c model/tok_norm.c
  model/tok_norm_chars.c model/tok_post.c model/tok_pretok.c model/tok_regex.c model/tok_set.c
  model/tok_unigram.c model/tok_utf8.c model/tok_vocab.c model/tok_words.c cmd_tokenize.c)
target_link_libraries(td_tokenizer PUBLIC td_common
  PRIVATE PkgConfig::pcre2 PkgConfig::utf8proc PkgConfig::xxhash)

# Built on request: cmake --build build --target bench_tokenizer
add_executable(bench_tokenizer EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tools/bench/bench_tokenizer.c)
target_link_libraries(bench_tokenizer PRIVATE td_tokenizer)
