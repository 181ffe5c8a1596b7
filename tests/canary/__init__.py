"""The canary: all fake personal data of the suite carries one tag, and whatever a process of it lets out is searched.

``people`` are whose data it is, ``search`` finds it, ``taps`` sit where output leaves a process, ``recorder`` keeps
what they see, ``allowed`` says who may get it, ``plugin`` makes a run fail, ``hook`` starts it in child processes.
"""
