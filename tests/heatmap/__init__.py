'''Heatmaps: sums, shares and colours whose answers are known, and what figures say.'''
