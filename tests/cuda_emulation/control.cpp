// emu_control.h.
#include <string>
#include <utility>

#include "checker.h"
#include "config.h"
#include "emu_control.h"
#include "reports.h"
#include "runtime.h"
#include "sites.h"

namespace emu {

Checker* checker = nullptr;
Config config;
Reports reports;

}  // namespace emu

extern "C" __attribute__((weak)) void __asan_init();

namespace {

// What a function returned to C, until its next call.
const char* kept(std::string& keeper, std::string text) {
  keeper = std::move(text);
  return keeper.c_str();
}

}  // namespace

void emu_set_order(int order, uint64_t seed) {
  emu::config.order = EmuOrder(order);
  emu::config.random.seed(seed);
}

void emu_set_shared_limit(size_t bytes) { emu::config.shared_limit = bytes; }
void emu_set_mma_rounding(int rounding) { emu::config.mma_rounding = EmuMmaRounding(rounding); }

void emu_register(void* start, size_t bytes, const char* name, int kind) {
  if (emu::checker) emu::checker->add_region(start, bytes, name, EmuRegionKind(kind));
}
void emu_register_part(void* start, size_t bytes, const char* name) {
  if (emu::checker) emu::checker->add_part(start, bytes, name);
}
void emu_unregister(void* start) {
  if (emu::checker) emu::checker->remove_region(start);
}

const char* emu_mode() { return emu::checker ? "check" : __asan_init ? "asan" : "plain"; }

size_t emu_report_count() { return emu::reports.count(); }
const char* emu_report_text() { return emu::reports.text().c_str(); }
void emu_reset_reports() { emu::reports.reset(); }

const char* emu_sync_sites() {
  static std::string text;
  return kept(text, emu::sites.json());
}
void emu_reset_sync_counts() { emu::sites.reset_counts(); }
int emu_disable_site(const char* site) { return emu::sites.disable(site); }
void emu_enable_all_sites() { emu::sites.enable_all(); }

const char* emu_traffic() {
  static std::string text;
  return kept(text, emu::checker ? emu::checker->traffic() : "{}");
}
void emu_reset_traffic() {
  if (emu::checker) emu::checker->reset_traffic();
}

uint64_t emu_switches() { return emu::switches(); }
