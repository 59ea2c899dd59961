"""The paper, for the cards of models."""

PAPER = "https://arxiv.org/abs/2303.11797"
BIBTEX = """\
@inproceedings{cho2024catseg,
  title     = {CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation},
  author    = {Cho, Seokju and Shin, Heeseong and Hong, Sunghwan and Arnab, Anurag and Seo, Paul Hongsuck and
               Kim, Seungryong},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024}
}"""
