td_test(test_tokenizer_gold SOURCES model/test_tokenizer_gold.c LIBS td_tokenizer)
