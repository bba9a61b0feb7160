#include "sites.h"

namespace emu {

Sites sites;

const char* name_of(Op op) {
  switch (op) {
    case Op::kBarrier:
      return "__syncthreads";
    case Op::kNamedBarrier:
      return "named barrier";
    case Op::kBarrierReduce:
      return "__syncthreads with a reduction";
    case Op::kSyncwarp:
      return "__syncwarp";
    case Op::kCopyWait:
      return "cp.async wait";
    case Op::kShuffle:
      return "shuffle";
    case Op::kVote:
      return "vote";
    case Op::kReduce:
      return "warp reduction";
    case Op::kMma:
      return "mma";
    case Op::kLdmatrix:
      return "ldmatrix";
  }
  return "?";
}

bool Sites::disable(const std::string& name) {
  disabled_.push_back(name);
  bool found = false;
  for (Site& site : sites_)
    if (site.name == name) found = site.disabled = true;
  return found;
}

void Sites::enable_all() {
  disabled_.clear();
  for (Site& site : sites_) site.disabled = false;
}

void Sites::reset_counts() {
  for (Site& site : sites_) site.count = 0;
}

std::string Sites::json() const {
  std::string text = "[";
  for (const Site& site : sites_) {
    if (text.size() > 1) text += ",\n ";
    text += "{\"site\": \"" + site.name + "\", \"file\": \"" + site.where.file + "\", \"operation\": \"" +
            name_of(site.op) + "\", \"count\": " + std::to_string(site.count) +
            ", \"disabled\": " + (site.disabled ? "true" : "false") + "}";
  }
  return text + "]";
}

Sites::Site& Sites::find_or_add(Op op, const Where& where) {
  for (Site& site : sites_)
    if (site.op == op && same_place(site.where, where)) return site;
  sites_.push_back({name_of(where), where, op});
  Site& site = sites_.back();
  site.disabled = std::find(disabled_.begin(), disabled_.end(), site.name) != disabled_.end();
  return site;
}

}  // namespace emu
