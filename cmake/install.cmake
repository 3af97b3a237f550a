# After `cmake --install`, find_package(moe) gives moe::moe; find_package(moe COMPONENTS io distributed) gives
# moe::io and moe::distributed as well.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moe)
install(DIRECTORY include/ DESTINATION include)
install(TARGETS moe EXPORT moe-targets)
install(EXPORT moe-targets NAMESPACE moe:: DESTINATION ${config_dir})
# Before 1.0 a minor version may break its users.
write_basic_package_version_file(moe-config-version.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES cmake/moe-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/moe-config-version.cmake DESTINATION ${config_dir})
