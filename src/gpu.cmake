# The CUDA device; the top CMakeLists.txt says when and for which chips. cuBLASLt is opened at run
# time and the CUDA runtime is linked statically, so the program starts on machines that have neither.
if(NOT TDGEN_WITH_CUDA)
  return()
endif()
file(GLOB gpu_sources CONFIGURE_DEPENDS gpu/*.c gpu/*.cu)
add_library(td_gpu STATIC ${gpu_sources})
set_target_properties(td_gpu PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                                        CUDA_RUNTIME_LIBRARY Static)
target_include_directories(td_gpu PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_options(td_gpu PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
target_link_libraries(td_gpu PUBLIC td_common CUDA::cudart_static ${CMAKE_DL_LIBS})
if(TDGEN_GPU_SHARED)
  # For tools/bundle: many programs, and the kernels of many chips once. What the library uses of
  # td_common and td_device it takes from the program.
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/td_gpu.map "{ global: td_*; local: *; };\n")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/td_gpu_shared.c "typedef int td_nothing;\n")
  add_library(td_gpu_shared SHARED ${CMAKE_CURRENT_BINARY_DIR}/td_gpu_shared.c)
  add_dependencies(td_gpu_shared td_gpu)
  set_target_properties(td_gpu_shared PROPERTIES LINK_DEPENDS $<TARGET_FILE:td_gpu>)
  target_link_options(td_gpu_shared PRIVATE -Wl,-Bsymbolic
                      -Wl,--version-script=${CMAKE_CURRENT_BINARY_DIR}/td_gpu.map)
  target_link_libraries(td_gpu_shared PRIVATE -Wl,--whole-archive $<TARGET_FILE:td_gpu>
                        -Wl,--no-whole-archive CUDA::cudart_static ${CMAKE_DL_LIBS} stdc++ m)
  target_link_libraries(td_device PUBLIC td_gpu_shared)
else()
  target_link_libraries(td_device PUBLIC td_gpu)
endif()
# Only the registry asks whether CUDA was compiled in.
set_property(SOURCE device.c APPEND PROPERTY COMPILE_DEFINITIONS TDGEN_CUDA)
