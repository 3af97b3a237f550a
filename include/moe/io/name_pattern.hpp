/// @file  Matches names of modules with the regular expressions of a stranger's file.
///
/// std::regex backtracks: a short pattern can take it hours, or all of the stack. Here a pattern becomes a list of
/// steps, and a name goes all ways through them at once, in time proportional to the length of the one times that of
/// the other.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/target.hpp"
#include "moe/io/error.hpp"

namespace moe::inline MOE_TARGET::io {

/// A regular expression of Python's, as far as files of PEFT have them: letters, ".", `\d`, `\w`, `\s` and their
/// opposites, [classes], (groups), (?:groups), "|", the repetitions * + ? {n} {n,} {,m} {n,m}, lazy ones too, ^ and $.
class NamePattern {
 public:
  static constexpr std::size_t max_length = 4096;   // of the text
  static constexpr std::size_t max_steps = 20'000;  // once repetitions are written out
  static constexpr int max_depth = 100;             // of groups

  /// @param where  what errors begin with
  /// @throws Error naming the pattern and what in it is not read, or is too long.
  NamePattern(std::string_view text, std::string_view where)
      : steps_(Parser{text, where}.parse()),
        of_letters_(std::ranges::all_of(steps_, [](const Step& step) { return step.kind == Kind::letter; })) {}

  /// How many steps there are to go for each letter of a name; 0 where a comparison does.
  std::size_t cost() const { return of_letters_ ? 0 : steps_.size(); }

  /// Does the pattern say all of the name, or all that follows one of its dots? As PEFT asks: (.*\.)?(pattern)$
  bool fits_end_of(std::string_view name) const {
    const auto may_begin = [&](std::size_t place) { return place == 0 || name[place - 1] == '.'; };
    if (of_letters_) {  // as most patterns are: it has one place to begin
      const std::size_t first = name.size() - steps_.size();
      if (steps_.size() > name.size() || !may_begin(first)) return false;
      for (std::size_t i = 0; i < steps_.size(); ++i) {
        if (!steps_[i].letters.test(static_cast<unsigned char>(name[first + i]))) return false;
      }
      return true;
    }
    if (!begins_as(name)) return false;
    Paths now(steps_.size()), next(steps_.size());
    for (std::size_t i = 0; i <= name.size(); ++i) {
      if (may_begin(i)) enter(0, name, i, now);
      if (i == name.size()) break;
      for (const std::size_t at : now.waiting) {
        if (steps_[at].letters.test(static_cast<unsigned char>(name[i]))) enter(at + 1, name, i + 1, next);
      }
      std::swap(now, next);
      next.clear();
    }
    return now.met[steps_.size()];
  }

 private:
  using Letters = std::bitset<256>;
  enum class Kind { letter, fork, begin, end };

  struct Step {
    Kind kind;
    Letters letters = {};                 // of letter
    std::ptrdiff_t first = 1, other = 1;  // of fork: to which steps it leads, from here
  };
  using Steps = std::vector<Step>;

  /// Whether a name has the letters with which any match begins, of a pattern that begins with "^": most have not, and
  /// a config may list hundreds of modules for each of thousands to be asked about.
  bool begins_as(std::string_view name) const {
    if (steps_.empty() || steps_[0].kind != Kind::begin) return true;
    for (std::size_t i = 0; i + 1 < steps_.size() && steps_[i + 1].kind == Kind::letter; ++i) {
      if (i == name.size() || !steps_[i + 1].letters.test(static_cast<unsigned char>(name[i]))) return false;
    }
    return true;
  }

  /// Where all ways through a pattern have come to: behind the last step, it matches.
  struct Paths {
    explicit Paths(std::size_t num_steps) : met(num_steps + 1) {}
    void clear() {
      waiting.clear();
      std::fill(met.begin(), met.end(), false);
    }
    std::vector<std::size_t> waiting;  // at a letter
    std::vector<bool> met;
  };

  /// Goes on from a step as far as no letter is read.
  void enter(std::size_t step, std::string_view name, std::size_t place, Paths& paths) const {
    std::vector<std::size_t> open{step};
    while (!open.empty()) {
      const std::size_t at = open.back();
      open.pop_back();
      if (paths.met[at]) continue;
      paths.met[at] = true;
      if (at == steps_.size()) continue;
      const auto& [kind, letters, first, other] = steps_[at];
      if (kind == Kind::letter) paths.waiting.push_back(at);
      if ((kind == Kind::begin && place == 0) || (kind == Kind::end && place == name.size())) open.push_back(at + 1);
      if (kind != Kind::fork) continue;
      open.push_back(std::size_t(std::ptrdiff_t(at) + first));
      open.push_back(std::size_t(std::ptrdiff_t(at) + other));
    }
  }

  /// Reads a pattern from its left to its right.
  struct Parser {
    std::string_view text, where;
    std::size_t at = 0;
    int depth = 0;

    Steps parse() {
      if (text.size() > max_length) {
        fail(where, ": a pattern has ", text.size(), " letters, expected at most ", max_length);
      }
      Steps all = alternatives();
      if (at < text.size()) refuse("a \")\" without its \"(\"");
      return all;
    }

    [[noreturn]] void refuse(const std::string& what) const {
      fail(where, ": \"", text, "\" is no regular expression that is read: it has ", what, " at ", at,
           "; expected letters . [] () (?:) | * + ? {} ^ $ \\d \\w \\s");
    }

    bool more() const { return at < text.size(); }
    bool sees(std::string_view what) const { return text.substr(at).starts_with(what); }
    bool take(char letter) {
      if (!more() || text[at] != letter) return false;
      ++at;
      return true;
    }

    Steps alternatives() {
      std::vector<Steps> branches{sequence()};
      while (take('|')) branches.push_back(sequence());
      std::ptrdiff_t behind = -2;  // steps of the branches that are still to come: the last has none around it
      for (const Steps& branch : branches) behind += std::ptrdiff_t(branch.size()) + 2;
      Steps all;
      for (std::size_t i = 0; i + 1 < branches.size(); ++i) {
        const auto size = std::ptrdiff_t(branches[i].size());
        behind -= size + 2;
        all.push_back({.kind = Kind::fork, .first = 1, .other = size + 2});
        append(all, branches[i]);
        all.push_back({.kind = Kind::fork, .first = behind + 1, .other = behind + 1});
      }
      append(all, branches.back());
      return all;
    }

    Steps sequence() {
      Steps all;
      while (more() && text[at] != '|' && text[at] != ')') append(all, repeated());
      return all;
    }

    Steps repeated() {
      Steps once = atom();
      if (const auto times = repetition()) {
        once = repeat(once, times->first, times->second);
        take('?');  // lazy: the same names match
        if (more() && (text[at] == '*' || text[at] == '+' || text[at] == '?' || text[at] == '{')) {
          refuse("a second repetition");
        }
      }
      return once;
    }

    Steps atom() {
      const std::size_t begin = at;
      switch (const char letter = text[at++]) {
        case '(': {
          if (sees("?") && !sees("?:")) at = begin, refuse("\"" + std::string(text.substr(at, 3)) + "\"");
          if (sees("?:")) at += 2;
          if (++depth > max_depth) refuse("too many groups within each other");
          Steps inner = alternatives();
          --depth;
          if (!take(')')) at = begin, refuse("a \"(\" without its \")\"");
          return inner;
        }
        case '^':
          return {{.kind = Kind::begin}};
        case '$':
          return {{.kind = Kind::end}};
        case '.':
          return one(~Letters().set('\n'));
        case '[':
          return one(letter_class());
        case '\\':
          return one(escaped());
        case '*':
        case '+':
        case '?':
        case '{':
          at = begin;
          refuse("nothing to repeat");
        default:
          return one(Letters().set(static_cast<unsigned char>(letter)));
      }
    }

    static Steps one(const Letters& letters) { return {{.kind = Kind::letter, .letters = letters}}; }

    static Letters range(int first, int last) {
      Letters letters;
      for (int letter = first; letter <= last; ++letter) letters.set(std::size_t(letter));
      return letters;
    }

    /// Behind a backslash.
    Letters escaped() {
      const char letter = more() ? text[at++] : '\0';
      const Letters digits = range('0', '9'), space = Letters().set(' ') | range('\t', '\r');
      const Letters word = digits | range('a', 'z') | range('A', 'Z') | Letters().set('_');
      switch (letter) {
        case 'd':
          return digits;
        case 'D':
          return ~digits;
        case 'w':
          return word;
        case 'W':
          return ~word;
        case 's':
          return space;
        case 'S':
          return ~space;
        default:
          if (letter == '\0' || word.test(static_cast<unsigned char>(letter))) {
            at -= letter == '\0' ? 1 : 2;
            refuse("\"" + std::string(text.substr(at, 2)) + "\"");
          }
          return Letters().set(static_cast<unsigned char>(letter));
      }
    }

    /// Behind a "[".
    Letters letter_class() {
      const std::size_t begin = at - 1;
      const bool others = take('^');
      Letters letters;
      for (bool first = true; first || !take(']'); first = false) {
        if (!more()) at = begin, refuse("a \"[\" without its \"]\"");
        const Letters from = member();
        if (!sees("-") || sees("-]")) {
          letters |= from;
          continue;
        }
        ++at;
        if (!more()) at = begin, refuse("a \"[\" without its \"]\"");
        const Letters to = member();
        if (from.count() != 1 || to.count() != 1 || number_of(from) > number_of(to)) refuse("a range of no letters");
        letters |= range(number_of(from), number_of(to));
      }
      return others ? ~letters : letters;
    }

    Letters member() {
      const char letter = text[at++];
      if (static_cast<unsigned char>(letter) >= 0x80) refuse("a letter of several bytes in []");
      return letter == '\\' ? escaped() : Letters().set(static_cast<unsigned char>(letter));
    }

    static int number_of(const Letters& one_letter) {
      int number = 0;
      while (!one_letter.test(std::size_t(number))) ++number;
      return number;
    }

    static constexpr std::size_t unbounded = max_steps + 1;

    std::optional<std::pair<std::size_t, std::size_t>> repetition() {
      if (take('*')) return std::pair(std::size_t(0), unbounded);
      if (take('+')) return std::pair(std::size_t(1), unbounded);
      if (take('?')) return std::pair(std::size_t(0), std::size_t(1));
      const std::size_t begin = at;
      if (!take('{')) return std::nullopt;
      const auto least = number();
      const bool comma = take(',');
      const auto most = comma ? number() : least;
      if ((!least && !most) || !take('}') || (most && *most < least.value_or(0))) at = begin, refuse("\"{\"");
      return std::pair(least.value_or(0), most.value_or(unbounded));
    }

    std::optional<std::size_t> number() {
      std::optional<std::size_t> value;
      for (; more() && text[at] >= '0' && text[at] <= '9'; ++at) {
        value = std::min(max_steps, value.value_or(0) * 10 + std::size_t(text[at] - '0'));
      }
      return value;
    }

    Steps repeat(const Steps& once, std::size_t least, std::size_t most) const {
      Steps all;
      const auto size = std::ptrdiff_t(once.size());
      for (std::size_t i = 0; i < least; ++i) append(all, once);
      if (most == unbounded) {
        all.push_back({.kind = Kind::fork, .first = 1, .other = size + 2});
        append(all, once);
        all.push_back({.kind = Kind::fork, .first = -size - 1, .other = -size - 1});
        return all;
      }
      for (std::size_t i = least; i < most; ++i) {  // each may be left out: those behind it may be met all the same
        all.push_back({.kind = Kind::fork, .first = 1, .other = size + 1});
        append(all, once);
      }
      return all;
    }

    void append(Steps& all, const Steps& more_steps) const {
      if (all.size() + more_steps.size() > max_steps) refuse("more than " + std::to_string(max_steps) + " steps");
      all.insert(all.end(), more_steps.begin(), more_steps.end());
    }
  };

  Steps steps_;
  bool of_letters_;  // and nothing else
};

}  // namespace moe::inline MOE_TARGET::io
