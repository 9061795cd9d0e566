# The CUDA device. TDGEN_CUDA: AUTO (when there is a toolkit), ON, OFF. TDGEN_CUDA_ARCHS: compute
# capabilities times ten; "all" is every chip that the toolkit and the kernels know. CUDA 13 dropped
# 7.0: a build that is to use V100s needs a CUDA 12 toolkit. cuBLASLt is opened at run time and the
# CUDA runtime is linked statically, so the program starts on machines that have neither.
set(TDGEN_CUDA AUTO CACHE STRING "CUDA devices: AUTO, ON or OFF")
set(TDGEN_CUDA_ARCHS "80;90" CACHE STRING "Compute capabilities to build kernels for, or \"all\"")

set(with_cuda OFF)
if(TDGEN_CUDA STREQUAL "ON")
  find_package(CUDAToolkit REQUIRED)
  set(with_cuda ON)
elseif(TDGEN_CUDA STREQUAL "AUTO" AND NOT TDGEN_SANITIZE)
  # Sanitizer builds have the CUDA-on-CPU layer of test/pretend for the same sources.
  find_package(CUDAToolkit QUIET)
  find_program(TDGEN_NVCC nvcc HINTS ${CUDAToolkit_BIN_DIR})
  if(CUDAToolkit_FOUND AND TDGEN_NVCC AND TARGET CUDA::cudart_static)
    set(with_cuda ON)
  endif()
endif()

if(NOT with_cuda)
  message(STATUS "tdgen: built without CUDA devices (TDGEN_CUDA=${TDGEN_CUDA})")
  return()
endif()

if(TDGEN_CUDA_ARCHS STREQUAL "all")
  if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 13)
    set(archs 75 80 86 89 90 100 120)
  elseif(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
    set(archs 70 75 80 86 89 90 100 120)
  else()
    set(archs 70 75 80 86 89 90)
  endif()
else()
  set(archs ${TDGEN_CUDA_ARCHS})
endif()
list(TRANSFORM archs APPEND "-real")
# Code of the newest one also as PTX, for chips that come later.
list(GET archs -1 newest)
string(REPLACE "-real" "-virtual" newest ${newest})
set(CMAKE_CUDA_ARCHITECTURES ${archs} ${newest})

enable_language(CUDA)
file(GLOB gpu_sources CONFIGURE_DEPENDS gpu/*.c gpu/*.cu)
add_library(td_gpu STATIC ${gpu_sources})
set_target_properties(td_gpu PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                                        CUDA_RUNTIME_LIBRARY Static)
target_include_directories(td_gpu PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_options(td_gpu PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
target_link_libraries(td_gpu PUBLIC td_common CUDA::cudart_static ${CMAKE_DL_LIBS})
target_link_libraries(td_device PUBLIC td_gpu)
# Only the registry asks whether CUDA was compiled in.
set_property(SOURCE device.c APPEND PROPERTY COMPILE_DEFINITIONS TDGEN_CUDA)
message(STATUS "tdgen: CUDA devices, toolkit ${CUDAToolkit_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
