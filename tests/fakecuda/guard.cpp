// Lets torch's CPU build run autograd over CUDA tensors without data.
//
// Autograd asks a device for its guard and its streams, and torch asks the CUDA hooks whether there
// is a device at all. The CPU build has neither. Both are here, and do nothing: there is one device,
// one stream, and no kernel.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);

c10::Stream onlyStream() {
  return c10::Stream(c10::Stream::DEFAULT, kDevice);
}

struct EmptyGuard final : public c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return onlyStream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return onlyStream(); }
};

} // namespace

C10_REGISTER_GUARD_IMPL(CUDA, EmptyGuard)

namespace at {

struct CUDAHooks final : public CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  // Pinned memory is ordinary memory here. It has no data either.
  bool isPinnedPtr(const void*) const override { return false; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

} // namespace at
