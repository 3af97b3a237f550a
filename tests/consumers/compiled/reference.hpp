// What the reference implementation reads and answers, without a type of ours: callers differ in their flags.
#pragma once

#include <string>
#include <vector>

std::vector<float> reference(const std::string& folder, const std::string& tensor);
