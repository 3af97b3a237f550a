/// @file  The door to surgery: layers made of others, upcycled, merged, pruned, quantised, packed; how much that
/// changed.
#pragma once

#include "moe/surgery/change_report.hpp"
#include "moe/surgery/merge.hpp"
#include "moe/surgery/pack.hpp"
#include "moe/surgery/prune.hpp"
#include "moe/surgery/quantize.hpp"
#include "moe/surgery/upcycle.hpp"
