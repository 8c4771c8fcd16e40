"""Claims about the spectra of weights while networks train (Yunis et al. 2024, arXiv 2408.11804).

Which experiment asks for which of the paper's headline results, by their number in the claims'
sources:

- C1, grokking and the collapse of ranks: ``grokking``, ``grokking-paper``; over which ranks the
  embedding's alignment climbs: ``grokking-alignment``.
- C2, rank minimisation; C3, truncation; C4, alignment of neighbours; C9, early stability of top
  vectors: ``rank-and-stability``.
- C5, rank under weight decay; C6, alignment; C7, truncation: ``weight-decay``.
- C2 to C7 in a recurrent network and in a Transformer: ``sequence-spectra``.
- C8, random labels: ``random-labels``, and where it turns round: ``random-labels-far``.
- C10, tickets: ``ticket-directions``.
- C11, barriers and agreement; C12, other trunks; C13, perturbation: ``mode-connectivity``.

Of the later journal version only the abstract was seen: rank minimisation and early stability occur
without alignment of neighbours. Claims named ``without-alignment`` ask for that.
"""
