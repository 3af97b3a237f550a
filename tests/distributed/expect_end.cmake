# Runs COMMAND (words with blanks between them), which must fail before TIMEOUT seconds are over, and say something that
# matches EXPECTED.
separate_arguments(COMMAND)
execute_process(COMMAND ${COMMAND} OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE result TIMEOUT ${TIMEOUT})
if(result STREQUAL "0" OR result MATCHES "timeout")
  message(FATAL_ERROR "It ended with ${result}, expected an error within ${TIMEOUT} s. It said:\n${said}")
endif()
if(NOT said MATCHES "${EXPECTED}")
  message(FATAL_ERROR "It said:\n${said}\nexpected: ${EXPECTED}")
endif()
