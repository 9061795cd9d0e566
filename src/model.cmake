add_library(td_safetensors STATIC model/safetensors.c)
target_link_libraries(td_safetensors PUBLIC td_common)

# Pure: what the planner needs of a model.
add_library(td_model_config STATIC model/families.c model/hf_config.c model/hf_rope.c
                                   model/hf_quant.c model/memory.c)
target_link_libraries(td_model_config PUBLIC td_common)

add_library(td_model STATIC model/checkpoint.c model/tensor.c model/weights.c model/weights_targets.c
                            model/weights_pack.c model/weights_stream.c model/rope.c
                            model/forward.c model/session.c)
target_link_libraries(td_model PUBLIC td_model_config td_safetensors td_common)
