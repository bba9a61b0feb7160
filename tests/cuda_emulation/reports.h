// What went wrong, for emu_report_text() and for the error of the launch.
#pragma once

#include <cstddef>
#include <set>
#include <string>

namespace emu {

class Reports {
 public:
  void add(const std::string& text) {
    ++count_;
    ++of_launch_;
    if (count_ <= kTexts) text_ += text + "\n";
    if (of_launch_ <= kTexts) launch_text_ += text + "\n";
  }

  // The same finding, as told by the key, only once a launch.
  void add_once(const std::string& key, const std::string& text) {
    if (known_.insert(key).second) add(text);
  }
  bool is_new(const std::string& key) const { return known_.count(key) == 0; }
  void know(const std::string& key) { known_.insert(key); }

  void start_launch() {
    of_launch_ = 0;
    launch_text_.clear();
    known_.clear();
  }

  void reset() { *this = {}; }

  size_t count() const { return count_; }
  const std::string& text() const { return text_; }
  size_t of_launch() const { return of_launch_; }
  const std::string& launch_text() const { return launch_text_; }

 private:
  static constexpr size_t kTexts = 50;  // the rest is only counted

  size_t count_ = 0, of_launch_ = 0;  // since the last reset; of the latest launch
  std::set<std::string> known_;
  std::string text_, launch_text_;
};

extern Reports reports;

}  // namespace emu
