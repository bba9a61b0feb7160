// plan_log.h: every new choice is reported once, from whatever thread.
#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "plan_log.h"

namespace {

std::atomic<int> reports{0};

void count(const stc::Request&, const stc::Plan&) { ++reports; }

stc::Plan because(stc::KernelKind kernel, const char* reason) {
  stc::Plan p{};
  p.kernel = kernel;
  p.reason = reason;
  return p;
}

void test_nobody_listens() {
  const stc::Plan p = because(stc::KernelKind::kEvent, "unheard");
  CHECK(stc::report_plan({}, p).reason == p.reason);
}

void test_once_for_each_choice() {
  stc::plan_listener = &count;
  stc::Request forward, backward;
  backward.backward = true;
  const stc::Plan plans[] = {because(stc::KernelKind::kEvent, "unheard"), because(stc::KernelKind::kEvent, "a"),
                             because(stc::KernelKind::kGeneral, "a"), because(stc::KernelKind::kGeneral, "b")};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      for (int call = 0; call < 1000; ++call)
        for (const stc::Plan& p : plans) {
          stc::report_plan(forward, p);
          stc::report_plan(backward, p);
        }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(reports == 8);
  stc::plan_listener = nullptr;
}

void test_what_is_slow() {
  stc::Request request;
  const stc::Plan general = because(stc::KernelKind::kGeneral, "a");
  CHECK(stc::is_slow(request, general));
  CHECK(!stc::is_slow(request, because(stc::KernelKind::kPersistent, "a")));
  request.spiking = false;
  CHECK(!stc::is_slow(request, general));
  request.spiking = true;
  request.double_precision = true;
  CHECK(!stc::is_slow(request, general));
}

}  // namespace

int main() {
  test_nobody_listens();
  test_once_for_each_choice();
  test_what_is_slow();
  return stc::test::result();
}
