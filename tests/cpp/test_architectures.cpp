// architectures.h: what runs where, by NVIDIA's rules of binary and PTX compatibility.
#include "architectures.h"
#include "check.h"

namespace {

void test_machine_code_stays_in_its_major_version() {
  CHECK(stc::runs_on("sm_80", 80));
  CHECK(stc::runs_on("sm_80", 86));
  CHECK(!stc::runs_on("sm_86", 80));
  CHECK(!stc::runs_on("sm_80", 90));
  CHECK(!stc::runs_on("sm_90", 89));
  CHECK(stc::runs_on("sm_100", 103));
  CHECK(!stc::runs_on("sm_100", 120));
  CHECK(stc::runs_on("sm_120", 121));
}

void test_ptx_runs_on_everything_later() {
  CHECK(stc::runs_on("compute_80", 80));
  CHECK(stc::runs_on("compute_80", 121));
  CHECK(!stc::runs_on("compute_80", 75));
  CHECK(!stc::runs_on("compute_120", 103));
}

void test_suffixes() {
  CHECK(stc::runs_on("sm_90a", 90));
  CHECK(!stc::runs_on("sm_100a", 103));
  CHECK(!stc::runs_on("compute_90a", 100));
  CHECK(stc::runs_on("sm_100f", 103));
  CHECK(stc::runs_on("compute_100f", 103));
  CHECK(!stc::runs_on("compute_100f", 120));
}

void test_lists() {
  CHECK(stc::code_for("sm_80 sm_90 compute_120", 86) == 80);
  CHECK(stc::code_for("sm_80 sm_90 compute_120", 121) == 120);
  CHECK(stc::code_for("sm_80 sm_90 compute_120", 75) == 0);
  CHECK(stc::code_for("sm_80 sm_90 compute_120", 100) == 0);
  CHECK(stc::code_for("", 90) == 0);
  CHECK(stc::code_for("sm_80 sm_86 compute_75", 89) == 86);
  // Code of an older GPU lacks what the newer one has.
  CHECK(stc::code_for("sm_75 compute_75", 86) == 75);
  CHECK(stc::code_for("compute_75 compute_80", 90) == 80);
}

void test_the_advice_names_the_gpu_the_build_and_the_remedy() {
  const std::string advice = stc::how_to_compile_for("sm_80 compute_90", 75);
  for (const char* part : {"sm_75", "sm_80 compute_90", "TORCH_CUDA_ARCH_LIST=7.5 "})
    CHECK(advice.find(part) != std::string::npos);
  CHECK(stc::how_to_compile_for("sm_80", 121).find("TORCH_CUDA_ARCH_LIST=12.1 ") != std::string::npos);
}

}  // namespace

int main() {
  test_machine_code_stays_in_its_major_version();
  test_ptx_runs_on_everything_later();
  test_suffixes();
  test_lists();
  test_the_advice_names_the_gpu_the_build_and_the_remedy();
  return stc::test::result();
}
