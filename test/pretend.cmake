# The CUDA device on the CPU (test/pretend/README.md): the sources of src/gpu, compiled by the host
# compilers over test/pretend, as td_device_pretend; and tdgen with it, as tdgen_pretend.
enable_language(CXX)

file(GLOB pretend_layer CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/pretend/*.cpp)
file(GLOB pretend_gpu CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/gpu/*.c
                                        ${PROJECT_SOURCE_DIR}/src/gpu/*.cu)
set(pretend_kernels ${pretend_gpu})
list(FILTER pretend_kernels INCLUDE REGEX "\\.cu$")
# Of this directory's targets only: in src they are CUDA.
set_source_files_properties(${pretend_kernels} PROPERTIES LANGUAGE CXX)

# What C++ here is compiled with. Kernels reinterpret memory as CUDA allows, hence no strict
# aliasing.
add_library(td_pretend_base INTERFACE)
target_compile_features(td_pretend_base INTERFACE cxx_std_17)
target_compile_definitions(td_pretend_base INTERFACE TD_PRETEND_CUDA)
target_include_directories(td_pretend_base BEFORE INTERFACE
  ${CMAKE_CURRENT_SOURCE_DIR}/pretend/include)
target_compile_options(td_pretend_base INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-unknown-pragmas -fno-strict-aliasing
                            -fno-math-errno>)
if(TDGEN_SANITIZE)
  target_compile_options(td_pretend_base INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
endif()
target_link_libraries(td_pretend_base INTERFACE td_base)

# The layer alone: for tests that launch kernels themselves.
add_library(td_pretend STATIC ${pretend_layer})
target_link_libraries(td_pretend PUBLIC td_pretend_base)
target_compile_options(td_pretend PRIVATE -Wshadow)
# The switches between fibers in sanitizer builds too.
set_source_files_properties(${CMAKE_CURRENT_SOURCE_DIR}/pretend/fiber.cpp
                            ${CMAKE_CURRENT_SOURCE_DIR}/pretend/combine.cpp PROPERTIES
  COMPILE_OPTIONS -O2)

function(td_pretend_sources out target)
  get_target_property(all ${target} SOURCES)
  set(result)
  foreach(one ${all})
    if(NOT one MATCHES "^(/|\\$<)")
      set(one ${PROJECT_SOURCE_DIR}/src/${one})
    endif()
    list(APPEND result ${one})
  endforeach()
  set(${out} ${result} PARENT_SCOPE)
endfunction()

td_pretend_sources(device_sources td_device)
add_library(td_device_pretend STATIC ${device_sources} ${pretend_gpu})
target_compile_definitions(td_device_pretend PRIVATE TDGEN_CUDA)
target_link_libraries(td_device_pretend PUBLIC td_pretend td_common
                                        PRIVATE DNNL::dnnl OpenMP::OpenMP_C)

td_pretend_sources(tdgen_sources tdgen)
add_executable(tdgen_pretend ${tdgen_sources})
target_link_libraries(tdgen_pretend PRIVATE td_sched td_device_pretend)
set_target_properties(tdgen_pretend PROPERTIES LINKER_LANGUAGE CXX)

# The suites of the CUDA device (gpu.cmake) on a pretend machine.
add_library(td_gpu_fixture_pretend STATIC device/gpu_fixture.c)
target_link_libraries(td_gpu_fixture_pretend PUBLIC td_device_pretend)
function(td_pretend_test name)
  cmake_parse_arguments(A "" "GPUS" "SOURCES;LIBS;ENVIRONMENT;ARGS" ${ARGN})
  td_test(${name} PLAIN SOURCES ${A_SOURCES} LIBS ${A_LIBS} ARGS ${A_ARGS} LABELS pretend)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77
    ENVIRONMENT "TDGEN_PRETEND_GPUS=${A_GPUS};${A_ENVIRONMENT}")
endfunction()
foreach(suite ops gemm attention capture moe streams)
  td_pretend_test(test_gpu_${suite}_pretend SOURCES device/test_gpu_${suite}.c
    LIBS td_gpu_fixture_pretend td_device_pretend
    GPUS "Pretend H100:9.0:132:1*2")
endforeach()
set_property(TEST test_gpu_streams_pretend APPEND PROPERTY ENVIRONMENT TDGEN_PRETEND_JITTER=1)

# The layer itself.
file(GLOB pretend_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/pretend/test/*.cpp)
td_test(test_pretend PLAIN SOURCES ${pretend_tests} LIBS td_pretend LABELS pretend)
