/// @file  An object of MPI that frees itself.
#pragma once

#include <memory>

#include <mpi.h>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Copies share it.
template <class T>
using Handle = std::shared_ptr<const T>;

/// `free` is called for the last copy; not after MPI_Finalize, which has then freed all.
template <class T>
Handle<T> own(T object, int (*free)(T*)) {
  return Handle<T>(new T(object), [free](T* its) {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized) free(its);
    delete its;
  });
}

}  // namespace moe::inline MOE_TARGET::distributed
