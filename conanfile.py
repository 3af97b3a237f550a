"""How Conan 2 packages the headers: `conan create . -s compiler.cppstd=20`. Where Eigen is the system's, a profile says so:

    [platform_requires]
    eigen/3.4.0
"""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout


class Moe(ConanFile):
    name = "moe"
    description = "Mixture-of-Experts layers for C++20, header-only, on Eigen"
    license = "MIT"
    topics = ("mixture-of-experts", "eigen", "header-only")
    settings = "os", "compiler", "build_type", "arch"
    package_type = "header-library"
    exports_sources = "CMakeLists.txt", "cmake/*", "include/*", "LICENSE"
    no_copy_source = True
    test_package_folder = "tests/consumers/conan"

    def set_version(self):
        text = Path(self.recipe_folder, "include", "moe", "version.hpp").read_text()
        self.version = ".".join(re.findall(r"#define MOE_VERSION_\w+ (\d+)", text))

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        self.requires("eigen/[>=3.4 <6]", transitive_headers=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def package_id(self):
        self.info.clear()

    def generate(self):
        toolchain = CMakeToolchain(self)
        programs = "MOE_BUILD_TESTS", "MOE_BUILD_BENCHMARKS", "MOE_BUILD_EXAMPLES", "MOE_BUILD_TOOLS"
        for own in "MOE_IO", "MOE_DISTRIBUTED", *programs:
            toolchain.cache_variables[own] = "OFF"
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()

    def package_info(self):
        # The installed package's own moe-config.cmake is what find_package(moe) reads; it finds Eigen itself.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["lib/cmake/moe"]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
