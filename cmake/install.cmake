# What cmake --install lays out, and the Debian package of it (cpack -G DEB).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS tdgen)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/CHANGELOG.md
        DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/conf/ DESTINATION ${CMAKE_INSTALL_DOCDIR}/conf)

# For those who build against libtdgen.
if(TARGET tdgen_lib)
  install(FILES ${PROJECT_SOURCE_DIR}/examples/score.c DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/tdgen.pc.in tdgen.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/tdgen.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  set(package ${CMAKE_INSTALL_LIBDIR}/cmake/tdgen)
  install(EXPORT tdgen FILE tdgenConfig.cmake NAMESPACE tdgen:: DESTINATION ${package})
  write_basic_package_version_file(tdgenConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/tdgenConfigVersion.cmake DESTINATION ${package})
endif()

# Manual pages say what the program says of itself, so they cannot disagree with it.
set(pages ${PROJECT_BINARY_DIR}/man)
add_custom_command(OUTPUT ${pages}/tdgen.1 ${pages}/tdgen.ini.5
  COMMAND ${PROJECT_SOURCE_DIR}/tools/lib/make_man.sh $<TARGET_FILE:tdgen> ${pages}
  DEPENDS tdgen ${PROJECT_SOURCE_DIR}/tools/lib/make_man.sh VERBATIM)
add_custom_target(man ALL DEPENDS ${pages}/tdgen.1 ${pages}/tdgen.ini.5)
install(FILES ${pages}/tdgen.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${pages}/tdgen.ini.5 DESTINATION ${CMAKE_INSTALL_MANDIR}/man5)

install(FILES ${PROJECT_SOURCE_DIR}/tools/completion/tdgen.bash
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME tdgen)
install(FILES ${PROJECT_SOURCE_DIR}/tools/completion/_tdgen DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME tdgen)
set(CPACK_PACKAGE_CONTACT "the maintainers of tdgen")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "teacher logits for knowledge distillation of language models")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
# Its libraries by name and version, as the linker found them.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "python3")
include(CPack)
