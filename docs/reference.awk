# What Doxygen reads of a header, line for line: the house's `@file  Sentence.` as Doxygen's, no inline namespace, and
# sentences about members that many parts have alike. These are said here once; where a member has a docstring, that stands.

function is(pattern, sentence) {
  if (!is_documented && $0 ~ pattern) {
    $0 = "/** " sentence " */ " $0
    is_documented = 1
  }
}

NR == 1 && sub(/^\/\/\/ @file  /, "") {
  print "/// @file"
  print "/// " $0
  next
}
NR == 2 && ($0 == "///" || $0 == "#pragma once") { next }  # in its place was a line more

/^ *\/\/\/   [^ ]/ { sub(/\/\/\/   /, "/// <br>") }  # a formula, or a line of a list

# A comment behind a member is its docstring: of a struct, or of the namespace.
{
  match($0, /[^ ]|$/)
  if ($0 ~ /^ *(struct|class) .*\{$/) {
    column[++depth] = RSTART + 2
  } else if (depth > 0 && $0 ~ /^ *};/ && RSTART + 2 == column[depth]) {
    --depth
  } else if (is_behind && $0 ~ /^ *\/\/ /) {
    sub(/\/\/ /, "///< ")
  } else if (RSTART == (depth > 0 ? column[depth] : 1)) {
    is_behind = sub(/; +\/\/ /, ";  ///< ") || (depth > 0 && sub(/} +\/\/ /, "}  ///< "))
  } else {
    is_behind = 0
  }
}

{
  if ($0 !~ /^ *template </) {
    is_documented = follows_docstring || $0 ~ /\/\/\/</
    follows_docstring = $0 ~ /^ *\/\/\//
  }
  sub(/^namespace moe::inline MOE_TARGET/, "namespace moe")
}

# Of every part: core/concepts.hpp, core/parameters.hpp.
/^  / && / const/ {
  is("Index d_model\\(\\) const", "The numbers of a token: rows of x and of y.")
  is("Index num_experts\\(\\) const", "Routes name experts 0 … num_experts() − 1.")
  is("Index top_k\\(\\) const", "The routes of a token.")
  is("Index d_ff\\(\\) const", "The width of an expert's hidden layer: outputs of up, inputs of down.")
}
/^ +using Scalar = / { is("", "The type of x and of y.") }
/^ +using WeightScalar = / { is("", "The type of the weights as they are stored.") }
/^ +using Vector = / { is("", "Numbers, one an output.") }
/^  void visit_parameters\(/ { is("", "Shows parts and parameters to the visitor, by their names in files: core/parameters.hpp.") }
/^  bool operator==\(.* = default;/ { is("", "Whether all members are equal.") }
/^  void route\(const Tokens</ { is("", "Adds the routes of these tokens to the routing, as Router asks.") }
/^  void route\(const ConstMatrixRef<Scalar>& logits/ {
  is("", "Adds the routes that these logits (num_experts × n_tokens) lead to.")
}
/^  void compute\(const Tokens</ { is("", "Writes the tokens' logits (num_experts × n_tokens).") }
/^  void apply\(const ConstMatrixRef</ { is("", "Adds weight · expert(x) to y for each slot of the plan, as Experts asks.") }
/^  void forward\(const ConstMatrixRef<.*Scratch&/ { is("", "y = expert(x), column by column, as Expert asks.") }
/^  (void for_each\(Index n, const Task& task|Index workers\(\)) const/ {
  is("for_each", "Runs task(i, worker) for each i in [0, n), as Executor asks.")
  is("workers", "The workers that a task may be run by: 0 … workers() − 1.")
}

/^  (\[\[.*\]\] )?[a-zA-Z:]+( [a-zA-Z:]+)? operator\(\)\(const Eigen::ArrayBase</ { is("", "Number by number.") }

# Of every filter: routers/filters/filtered_router.hpp.
/^  void apply\(const Tokens</ { is("", "Changes the routes that a router wrote, to num_experts experts.") }

# Of every EvictionPolicy: io/store/policies.hpp.
/^  void used\(std::span</ { is("", "Hears which experts a call of a layer reads.") }
/^  ExpertId victim\(std::span</ { is("", "One of the candidates: whose room is to be given away.") }

# What a constructor was given, by its name.
/^  [^ ].* [a-z_]+\(\) const \{ return [a-z_]+_; \}/ { is("", "What the constructor was given, as it is now.") }
/^  [^ ].* [a-z_]+\(\) \{ return ([a-z_]+_|to_write\([a-z_]+_\)|\{[a-z_]+_\.data\(\), .*\}); \}/ { is("", "The same, to write.") }

# Overloads, of each part one.
/^(\[\[.*\]\] )?[A-Za-z].* merged\(const / { is("", "The same with its adapters, if it has any, added into weights of its own.") }
/^[A-Za-z].* tape_of\(const / { is("", "An empty tape of this part: what backward() needs of the forward pass that fills it.") }
/^  Workspace<Scalar>& workspace\(\)/ { is("", "Where the forward pass that filled the tape left its routing.") }
/^  Eigen::Map<Matrix<Scalar>> logit_gradient\(\)/ {
  is("", "What losses add of ∂loss/∂logits (num_experts × n_tokens), before backward(); empty where there is no router.")
}
/^  Eigen::Map<Matrix<Scalar>> router_input_gradient\(\)/ {
  is("", "∂loss/∂router_input (d_model × n_tokens), after backward(); empty where the router read x.")
}
/^  (MOE_INLINE )?static void integers\(const std::byte\* block/ {
  is("", "The codes of a block as whole numbers, a scale for each group of them, and a minimum where there are any.")
}
/^  MOE_INLINE static (auto wide_|void put_scales)/ {
  is("wide_codes", "64 codes from here on in a register: codes::WideBlock.")
  is("wide_scales", "The scales of two blocks, of four codes each: codes::WideBlock.")
  is("wide_minima", "The minima of four blocks, then zeros: codes::WideBlock.")
  is("put_scales", "The scales of groups, and their minima, then zeros: codes::WideBlock.")
}
/^  (MOE_INLINE )?static void decode\(const std::byte\* block, float\* to\)/ { is("", "The numbers of a block, in order.") }
/^  static void encode\(const float\* x, const float\*/ { is("", "The block whose numbers are nearest to x, as far as importance counts.") }

{ print }
