# After `cmake --install`, find_package(moe) gives moe::moe and moe::native; find_package(moe COMPONENTS io distributed)
# gives moe::io and moe::distributed as well. `pkg-config --cflags moe` is for those who do not use CMake.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moe)
install(DIRECTORY include/ DESTINATION include)
install(TARGETS moe EXPORT moe-targets)
install(EXPORT moe-targets NAMESPACE moe:: DESTINATION ${config_dir})
# Before 1.0 a minor version may break its users: CONTRIBUTING.md.
write_basic_package_version_file(moe-config-version.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES cmake/moe-config.cmake cmake/moe-native.cmake ${CMAKE_CURRENT_BINARY_DIR}/moe-config-version.cmake
        DESTINATION ${config_dir})

file(CONFIGURE OUTPUT moe.pc @ONLY CONTENT [[
prefix=${pcfiledir}/../..
Name: moe
Description: @PROJECT_DESCRIPTION@
Version: @PROJECT_VERSION@
Requires: eigen3 >= 3.4
Cflags: -I${prefix}/include
]])
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moe.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
