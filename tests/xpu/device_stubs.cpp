// The device functions that vllm-xpu-kernels calls, none of which does anything but say its name.
// With them its extension loads where there is no Intel GPU, and a call of one of its operators ends
// where it would first touch the device: after its own checks of the arguments.
#include <stdexcept>

#define DEVICE_FUNCTION(number, symbol)                        \
  [[noreturn]] void stub_##number() __asm__(symbol);           \
  void stub_##number() { throw std::runtime_error("reached the device: " symbol); }

#ifdef C10_XPU
void* allocator __asm__("_ZN3c103xpu19XPUCachingAllocator9allocatorE") = nullptr;
DEVICE_FUNCTION(1, "_ZN2at3xpu19getDevicePropertiesEa")
DEVICE_FUNCTION(2, "_ZN3c103xpu10set_deviceEa")
DEVICE_FUNCTION(3, "_ZN3c103xpu12device_countEv")
DEVICE_FUNCTION(4, "_ZN3c103xpu14current_deviceEv")
DEVICE_FUNCTION(5, "_ZN3c103xpu14get_raw_deviceEa")
DEVICE_FUNCTION(6, "_ZN3c103xpu18get_device_contextEv")
DEVICE_FUNCTION(7, "_ZN3c103xpu19getCurrentXPUStreamEa")
DEVICE_FUNCTION(8, "_ZN3c103xpu19syncStreamsOnDeviceEa")
DEVICE_FUNCTION(9, "_ZN3c103xpu28device_count_ensure_non_zeroEv")
DEVICE_FUNCTION(10, "_ZNK3c103xpu9XPUStream5queueEv")
DEVICE_FUNCTION(11, "_ZNK3c103xpu9XPUStream8priorityEv")
#endif

#ifdef LEVEL_ZERO
DEVICE_FUNCTION(1, "zeDeviceGetMemoryProperties")
DEVICE_FUNCTION(2, "zeDeviceGetProperties")
DEVICE_FUNCTION(3, "zeDriverGetExtensionProperties")
#endif
