/// @file  What maps a file on Windows.
///
/// Declared here as in Microsoft's headers, because <windows.h> would bring its macros (min, near, small, ERROR …) into
/// every file of a user. Both may be included, in either order.
#pragma once

#if defined(_WIN64)

#include <cstddef>

extern "C" {
struct _SECURITY_ATTRIBUTES;
__declspec(dllimport) void* __stdcall CreateFileMappingW(void* file, _SECURITY_ATTRIBUTES* security,
                                                         unsigned long protection, unsigned long size_high,
                                                         unsigned long size_low, const wchar_t* name);
__declspec(dllimport) void* __stdcall MapViewOfFile(void* mapping, unsigned long access, unsigned long offset_high,
                                                    unsigned long offset_low, std::size_t size);
__declspec(dllimport) int __stdcall UnmapViewOfFile(const void* view);
__declspec(dllimport) int __stdcall CloseHandle(void* handle);
__declspec(dllimport) unsigned long __stdcall GetLastError();
}

#endif
