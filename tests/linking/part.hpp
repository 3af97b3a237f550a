/// @file  What a file of the program says of the layer that it ran. Nothing of the library is in here.
#pragma once

struct Ran {
  const char* target;  // that the file was compiled for
  int lanes;           // floats that the kernel handed to the activation at once
  int workers;         // of moe::OpenMp()
  double sum;          // of |y|
};

Ran portable();     // the processor's least, without OpenMP
Ran avx2_openmp();  // AVX2, with OpenMP
Ran avx2();         // AVX2, without OpenMP
