/// @file  What MPI is really given to send, counted between the program and the library.
#pragma once

namespace moe::test {

/// Bytes that this rank has sent to other ranks in exchanges between all. Set it to 0 when you like.
extern long measured_bytes;

}  // namespace moe::test
