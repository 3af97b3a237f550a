# The program of every consumer, which must get no compiler option from us: those are its own affair.
get_target_property(options moe::moe INTERFACE_COMPILE_OPTIONS)
if(options)
  message(FATAL_ERROR "moe::moe makes its users compile with ${options}")
endif()
add_executable(consumer ../main.cpp)
target_link_libraries(consumer PRIVATE moe::moe)
