"""Planning for a half cheetah: plans of states and actions, guided by a value or asked for a return, anew at each step."""
