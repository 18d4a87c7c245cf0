"""Fake trees of machines: files of proc and sys, and the programs that a board brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CPU = "sys/devices/system/cpu"


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below root; what begins with "#!" can be run."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if text.startswith("#!"):
            path.chmod(0o755)
    return root


def says(answers: Mapping[str, str]) -> str:
    """A program that prints the answer to its arguments, and fails for all others."""
    cases = [f"'{args}') cat <<'END'\n{text}\nEND\n;;" for args, text in answers.items()]
    return "\n".join(["#!/bin/sh", 'case "$*" in', *cases, "*) exit 2;;", "esac\n"])


PMIC = """\
 3V7_WL_SW_A current(0)=0.10000000A
   DDR_VDD2_A current(1)=0.50000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   DDR_VDD2_V volt(9)=1.10000000V
  VDD_CORE_V volt(15)=0.90000000V
  EXT5V_V volt(24)=5.15340000V
  BATT_V volt(25)=0.00000000V"""  # 0.37 + 0.55 + 1.8 W


def raspberry_pi_5(root: Path) -> Path:
    policy = f"{CPU}/cpufreq/policy0"
    core = "processor\t: {n}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimddp\n"
    core += "CPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
    vcgencmd = {
        "get_throttled": "throttled=0x50005",
        "measure_temp": "temp=62.3'C",
        "measure_clock arm": "frequency(0)=2400033792",
        "measure_volts core": "volt=0.8600V",
        "pmic_read_adc": PMIC,
    }
    cpuinfo = "".join(core.format(n=n) for n in range(4))
    return write(
        root,
        {
            "proc/cpuinfo": cpuinfo + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
            "sys/firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "proc/meminfo": "MemTotal:  8245000 kB\nMemFree: 1 kB\nMemAvailable:  7000000 kB\n",
            f"{CPU}/online": "0-3\n",
            f"{policy}/scaling_cur_freq": "2400000\n",
            f"{policy}/scaling_governor": "ondemand\n",
            f"{policy}/scaling_available_governors": "ondemand performance\n",
            f"{policy}/cpuinfo_max_freq": "2400000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "61750\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            "proc/pressure/cpu": "some avg10=1.25 avg60=0.4 avg300=0.1 total=9\n",
            "proc/pressure/io": "some avg10=0.50 avg60=0 avg300=0 total=9\nfull avg10=7.0\n",
            "proc/vmstat": "pgpgin 55\npswpin 3\npswpout 17\n",
            "usr/bin/vcgencmd": says(vcgencmd),
        },
    )


JETSON_CLOCKS = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-3
cpu0: Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000 \
IdleStates: WFI=0 c7=0
cpu4: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=1728000 CurrentFreq=729600 \
IdleStates: WFI=1 c7=1
GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=61
NV Power Mode: MAXN_SUPER"""

POWER_MODES = """\
NVPM VERB: Config file: /etc/nvpmodel.conf
NVPM VERB: parsing done for /etc/nvpmodel.conf
POWER_MODEL: ID=0 NAME=15W
        CPU_ONLINE CORE_0 1
POWER_MODEL: ID=2 NAME=MAXN_SUPER
        CPU_ONLINE CORE_0 1
PM_CONFIG: DEFAULT=15W(0)"""


def jetson_orin_nano(root: Path) -> Path:
    policy, gpu = f"{CPU}/cpufreq/policy0", "sys/class/devfreq/17000000.gpu"
    rails = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1"
    return write(
        root,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, "
            "BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
            "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n"
            "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            f"{CPU}/online": "0-3\n",
            f"{policy}/scaling_cur_freq": "1728000\n",
            f"{policy}/scaling_min_freq": "729600\n",
            f"{policy}/scaling_max_freq": "1728000\n",
            f"{gpu}/cur_freq": "1020000000\n",
            f"{gpu}/min_freq": "306000000\n",
            f"{gpu}/max_freq": "1020000000\n",
            "sys/class/hwmon/hwmon0/oc1_event_cnt": "0\n",
            "sys/class/hwmon/hwmon0/oc3_event_cnt": "41\n",
            "sys/bus/i2c/devices/1-0040/name": "ina3221\n",
            f"{rails}/in1_label": "VDD_IN\n",
            f"{rails}/in1_input": "5000\n",
            f"{rails}/curr1_input": "1200\n",
            f"{rails}/in2_label": "VDD_CPU_GPU_CV\n",
            f"{rails}/in2_input": "5000\n",
            f"{rails}/curr2_input": "400\n",
            f"{rails}/in3_label": "NC\n",
            f"{rails}/in3_input": "5000\n",
            f"{rails}/curr3_input": "9000\n",
            f"{rails}/in7_label": "sum of shunt voltages\n",
            f"{rails}/in7_input": "9000\n",
            f"{rails}/curr7_input": "9000\n",
            "usr/sbin/nvpmodel": says(
                {"-q": "NV Power Mode: MAXN_SUPER\n2", "-p --verbose": POWER_MODES}
            ),
            "usr/bin/jetson_clocks": says({"--show": JETSON_CLOCKS}),
            # On a Jetson it exists and knows next to nothing.
            "usr/sbin/nvidia-smi": "#!/bin/sh\necho name\necho 'Orin (nvgpu)'\n",
        },
    )


SMI_NEW = """\
name, clocks.current.sm [MHz], clocks.current.memory [MHz], temperature.gpu, power.draw [W], \
clocks_event_reasons.active
NVIDIA GeForce RTX 3060, 1837 MHz, 7300 MHz, 54, 71.25 W, 0x0000000000000004"""
SMI_OLD = SMI_NEW.replace("event", "throttle").replace("71.25 W", "[N/A]")
_SMI = "-i 0 --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu,power.draw,{} --format=csv"


def x86_box(root: Path) -> Path:
    """An Intel PC whose NVIDIA driver is older."""
    rapl = "sys/class/powercap"
    smi = {
        "--query-gpu=name --format=csv": "name\nNVIDIA GeForce RTX 3060",
        _SMI.format("clocks_throttle_reasons.active"): SMI_OLD,
    }
    return write(
        root,
        {
            "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Core i5\n"
            "flags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\n",
            "proc/self/cgroup": "0::/user.slice/me\n",
            "sys/fs/cgroup/user.slice/me/cpu.stat": "usage_usec 5\nnr_periods 10\n"
            "nr_throttled 4\nthrottled_usec 120000\n",
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "2\n",
            f"{CPU}/cpu0/thermal_throttle/package_throttle_count": "9\n",
            f"{rapl}/intel-rapl:0/name": "package-0\n",
            f"{rapl}/intel-rapl:0/energy_uj": "1000000\n",
            f"{rapl}/intel-rapl:0/max_energy_range_uj": "262143328850\n",
            f"{rapl}/intel-rapl:0:0/name": "core\n",
            f"{rapl}/intel-rapl:0:0/energy_uj": "700000\n",
            f"{rapl}/intel-rapl:0:1/name": "dram\n",
            f"{rapl}/intel-rapl:0:1/energy_uj": "500000\n",
            f"{rapl}/intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
            f"{rapl}/intel-rapl:1/name": "psys\n",
            f"{rapl}/intel-rapl:1/energy_uj": "9000000\n",
            "usr/bin/nvidia-smi": says(smi),
        },
    )
